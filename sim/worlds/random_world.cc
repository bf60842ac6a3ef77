#include "sim/worlds/random_world.h"

#include <algorithm>
#include <array>

namespace whimbrel::sim {
namespace {

using Kind = Operation::Kind;

// The arena: two 2 MiB units; the first 64 pages of each and the pages around the border are used most.
constexpr std::uint64_t kArena = 2 * kPagesPerHuge;
constexpr std::uint32_t kReadWrite = Mapping::kReadable | Mapping::kWritable;

constexpr std::array<const char*, 29> kNames = {"read",        "write",         "mmap",         "munmap",
                                                "dontneed",    "free",          "mremap",       "mremap dontunmap",
                                                "mprotect r",  "mprotect none", "mprotect rw",  "mlock",
                                                "munlock",     "grow",          "madvise huge", "evict",
                                                "evict huge",  "populate",      "fetch",        "fetch huge",
                                                "frames home", "pin",           "fork",         "merge",
                                                "swap",        "reclaim",       "collapse",     "signal",
                                                "device gone"};

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : choices_(Choices::random(seed * 2654435761u + 17)) { (void)choices_.next(); }
  explicit Dice(std::span<const std::uint8_t> bytes) : choices_(Choices::random(0)), bytes_(bytes), given_(true) {}
  std::uint64_t below(std::uint64_t n) {
    if (!given_) return choices_.pick(static_cast<std::uint32_t>(n));
    std::uint64_t number = next_byte();
    if (n > 256) number |= next_byte() << 8;
    return number % n;
  }
  [[nodiscard]] bool at_end() const { return given_ && bytes_.empty(); }

 private:
  std::uint64_t next_byte() {
    if (bytes_.empty()) return 0;
    const std::uint64_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }

  Choices choices_;
  std::span<const std::uint8_t> bytes_;
  const bool given_ = false;
};

std::uint64_t some_page(Dice& dice) {
  switch (dice.below(4)) {
    case 0:
      return dice.below(8);
    case 1:
      return kPagesPerHuge - 4 + dice.below(8);
    case 2:
      return dice.below(64);
    default:
      return dice.below(kArena);
  }
}

std::uint64_t some_count(Dice& dice) {
  switch (dice.below(5)) {
    case 0:
      return kPagesPerHuge;
    case 1:
      return 1 + dice.below(64);
    default:
      return 1 + dice.below(4);
  }
}

Kind program_kind(Dice& dice) {
  constexpr Kind kRare[] = {Kind::kMap,          Kind::kUnmap,        Kind::kDiscard,     Kind::kFree,
                            Kind::kRemap,        Kind::kRemapKeep,    Kind::kProtectRead, Kind::kProtectNone,
                            Kind::kProtectWrite, Kind::kProtectWrite, Kind::kLock,        Kind::kUnlock,
                            Kind::kGrow,         Kind::kHugeAdvice,   Kind::kMap};
  const std::uint64_t at = dice.below(10);
  if (at < 4) return Kind::kRead;
  if (at < 7) return Kind::kWrite;
  return kRare[dice.below(std::size(kRare))];
}

Kind engine_kind(Dice& dice) {
  constexpr Kind kAll[] = {Kind::kEvict, Kind::kEvict,     Kind::kEvictHuge, Kind::kPopulate,
                           Kind::kFetch, Kind::kFetchHuge, Kind::kFramesHome};
  return kAll[dice.below(std::size(kAll))];
}

Kind machine_kind(Dice& dice) { return static_cast<Kind>(static_cast<std::uint64_t>(Kind::kPin) + dice.below(8)); }

constexpr std::uint32_t kProgramThreads = 3;
constexpr std::uint32_t kEngineThreads = 2;
constexpr std::uint32_t kThreads = kProgramThreads + kEngineThreads + 1;

PageRange range_of(const Operation& operation) { return World::pages(operation.page, operation.count); }

void run_program(World& world, std::uint32_t self, const Operation& op) {
  SimProgram& memory = world.memory();
  const PageRange range = range_of(op);
  switch (op.kind) {
    case Kind::kRead:
      return world.read(self, World::word(op.page, op.offset));
    case Kind::kWrite:
      return world.write(self, World::word(op.page, op.offset));
    case Kind::kMap:
      return memory.mmap(range, kReadWrite | (op.offset % 16 == 0 ? Mapping::kHugeAdvised : 0u));
    case Kind::kUnmap:
      return memory.munmap(range);
    case Kind::kDiscard:
      return (void)memory.dontneed(range);
    case Kind::kFree:
      return (void)memory.free_lazily(range);
    case Kind::kRemap:
      return (void)memory.mremap(range, World::pages(op.to, 1).first);
    case Kind::kRemapKeep:
      return (void)memory.mremap(range, World::pages(op.to, 1).first, true);
    case Kind::kProtectRead:
      return (void)memory.mprotect(range, Mapping::kReadable);
    case Kind::kProtectNone:
      return (void)memory.mprotect(range, 0);
    case Kind::kProtectWrite:
      return (void)memory.mprotect(World::pages(0, kArena), kReadWrite);
    case Kind::kLock:
      return (void)memory.mlock(self, range);
    case Kind::kUnlock:
      return (void)memory.munlock(World::pages(0, kArena));
    case Kind::kGrow:
      return (void)memory.grow(range.first, PageCount(op.count + 8));
    case Kind::kHugeAdvice:
      return (void)memory.advise(range, Mapping::kHugeAdvised, Mapping::kNoHuge);
    default:
      return;
  }
}

// The part of the range that lies in one mapping: the protocol takes nothing else.
PageRange clipped(World& world, PageRange range) {
  const Vma* vma = world.mmu().space().find_at_or_above(range.first);
  return vma == nullptr || vma->window ? PageRange{} : range.intersect(vma->range);
}

void run_engine(World& world, const Operation& op) {
  const PageRange range = clipped(world, range_of(op));
  if (range.empty() && op.kind != Kind::kFramesHome) return;
  switch (op.kind) {
    case Kind::kEvict:
      return (void)world.driver().to_device(range, false, SimDriver::Holes::kLeave);
    case Kind::kEvictHuge:
      return (void)world.driver().to_device(range, true, SimDriver::Holes::kLeave);
    case Kind::kPopulate:
      return (void)world.driver().to_device(range, op.offset % 16 == 0, SimDriver::Holes::kPopulate);
    case Kind::kFetch:
      return (void)world.driver().to_ram(range, false);
    case Kind::kFetchHuge:
      return (void)world.driver().to_ram(range, true);
    case Kind::kFramesHome:
      return (void)world.driver().evict_frames();
    default:
      return;
  }
}

void pause(std::uint64_t points) {
  for (std::uint64_t i = 0; i < points; ++i) Scheduler::current()->point();
}

void run_machine(World& world, const Operation& op) {
  SimMmu& mmu = world.mmu();
  const PageIndex page = range_of(op).first;
  pause(1 + op.offset % 32);
  switch (op.kind) {
    case Kind::kPin:
      if (FramePtr frame = mmu.hold(page); frame != nullptr && mmu.space().slot(page).kind == Slot::Kind::kFrame) {
        // The frame is pinned, wherever it goes: it cannot move, but its mapping may.
        ++frame->pins;
        pause(op.offset % 64);
        --frame->pins;
      }
      return;
    case Kind::kFork: {
      const auto child = mmu.fork();
      pause(op.offset % 64);
      return;
    }
    case Kind::kMerge:
      return (void)mmu.space().merge(page, page + PageCount(1));
    case Kind::kSwap:
      return (void)mmu.space().swap_out(page);
    case Kind::kReclaim:
      return mmu.reclaim({PageIndex(0), PageCount(std::uint64_t{1} << 36)});
    case Kind::kCollapse:
      return (void)mmu.space().collapse(page.huge_base());
    case Kind::kSignal:
      return mmu.userfault().interrupt_waiter(op.offset);
    case Kind::kDeviceGone:
      world.device().set_gone(true);
      pause(op.offset % 64);
      world.device().set_gone(false);
      return;
    default:
      return;
  }
}

void run_operation(World& world, std::uint32_t self, const Operation& op) {
  Scheduler::note("%s", describe(op).c_str());
  if (op.thread < kProgramThreads) return run_program(world, self, op);
  if (op.thread < kProgramThreads + kEngineThreads) return run_engine(world, op);
  run_machine(world, op);
}

Operation some_operation(Dice& dice) {
  Operation op;
  op.thread = static_cast<std::uint32_t>(dice.below(kThreads + 3));
  if (op.thread >= kThreads) op.thread -= kThreads;  // the program does most
  op.kind = op.thread < kProgramThreads                    ? program_kind(dice)
            : op.thread < kProgramThreads + kEngineThreads ? engine_kind(dice)
                                                           : machine_kind(dice);
  op.page = some_page(dice);
  op.count = std::min(some_count(dice), kArena - op.page);
  if (op.count == kPagesPerHuge) op.page = op.page / kPagesPerHuge * kPagesPerHuge;
  op.to = dice.below(3) == 0 ? (op.page + kPagesPerHuge) % kArena : dice.below(kArena);
  op.to = std::min(op.to, kArena - op.count);
  op.offset = 8 * dice.below(8);
  return op;
}

}  // namespace

std::string describe(const Operation& op) {
  char text[160];
  std::snprintf(text, sizeof text, "thread %u: %s page %llu count %llu to %llu offset %llu", op.thread,
                kNames[static_cast<std::size_t>(op.kind)], static_cast<unsigned long long>(op.page),
                static_cast<unsigned long long>(op.count), static_cast<unsigned long long>(op.to),
                static_cast<unsigned long long>(op.offset));
  return text;
}

std::vector<Operation> random_operations(std::uint64_t seed) {
  Dice dice(seed);
  std::vector<Operation> operations(20 + dice.below(100));
  for (Operation& op : operations) op = some_operation(dice);
  return operations;
}

std::vector<Operation> operations_from(std::span<const std::uint8_t> bytes) {
  constexpr std::size_t kMost = 120;
  Dice dice(bytes);
  std::vector<Operation> operations;
  while (!dice.at_end() && operations.size() < kMost) operations.push_back(some_operation(dice));
  return operations;
}

World::Options random_options(std::uint64_t seed, std::uint32_t failures, bool break_sharing) {
  Dice dice(seed ^ 0x5eedu);
  World::Options options;
  options.schedule = {.random_one_in = static_cast<std::uint32_t>(2 + dice.below(12)), .max_steps = 400'000};
  options.failures = dice.below(2) == 0 ? 0 : failures;
  options.fail_one_in = static_cast<std::uint32_t>(10 + dice.below(300));
  options.device.late = dice.below(2) != 0;
  options.device_may_go = true;
  options.scarce_driver = dice.below(2) != 0;
  options.engine.break_sharing = break_sharing && dice.below(3) == 0;
  options.mmu.space.zero_page_on_read = dice.below(4) != 0;
  return options;
}

void start_random_world(World& world, std::uint64_t seed, const std::vector<Operation>& operations,
                        const std::vector<std::size_t>* keep) {
  const bool huge = seed % 2 == 0;
  world.setup([&world, huge] {
    world.memory().mmap(World::pages(0, kArena), kReadWrite | (huge ? Mapping::kHugeAdvised : Mapping::kNoHuge));
    for (const std::uint64_t page : {0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 510, 511, 512, 513, 600, 1023}) {
      world.write(1, World::word(page, 8 * (page % 8)));
    }
  });
  std::vector<std::vector<Operation>> lists(kThreads);
  for (std::size_t i = 0; i < operations.size(); ++i) {
    if (keep != nullptr && std::find(keep->begin(), keep->end(), i) == keep->end()) continue;
    lists[operations[i].thread].push_back(operations[i]);
  }
  for (std::vector<Operation>& list : lists) {
    world.program([&world, list = std::move(list)](std::uint32_t self) {
      for (const Operation& op : list) run_operation(world, self, op);
    });
  }
}

}  // namespace whimbrel::sim
