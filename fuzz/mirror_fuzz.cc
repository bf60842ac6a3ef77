// Commands to the mirror devices with any arguments, on the real kernel: addresses that are not aligned, not mapped,
// beyond the user's half, sizes that wrap round, buffers that cannot be written. Contents are those of a model whatever
// the answers are, and a refused command says so in the interface's own errors.
//
//   byte 0   the node;  then commands of some bytes each
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "fuzz/fuzz.h"
#include "mirror/descriptor.h"

namespace whimbrel {
namespace {

using mirror::Command;
using mirror::Number;

constexpr std::uint64_t kPage = 4096, kPages = 64;

// The memory that commands are about, with unmapped pages around it: a range that leaves it meets nothing of ours.
struct Arena {
  static constexpr std::uint64_t kAround = 2048;
  std::uint8_t* memory = nullptr;
  std::uint8_t* buffer = nullptr;
  std::vector<std::uint8_t> model = std::vector<std::uint8_t>(kPages * kPage);

  Arena() {
    auto* const whole = static_cast<std::uint8_t*>(mmap(nullptr, (2 * kAround + kPages) * kPage, PROT_NONE,
                                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    PROPERTY(whole != MAP_FAILED, "an arena");
    memory = whole + kAround * kPage;
    PROPERTY(munmap(whole, (2 * kAround + kPages) * kPage) == 0 &&
                 mmap(memory, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
                     memory,
             "an arena");
    buffer = static_cast<std::uint8_t*>(
        mmap(nullptr, 2 * kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    PROPERTY(buffer != MAP_FAILED, "a buffer");
  }
  void refill(std::uint64_t page, std::uint64_t count, std::uint64_t seed) {
    for (std::uint64_t at = page * kPage; at < (page + count) * kPage; at += 8) {
      const std::uint64_t value = (at + 1) * 0x9e3779b97f4a7c15u + seed;
      std::memcpy(memory + at, &value, 8);
      std::memcpy(model.data() + at, &value, 8);
    }
  }
};

struct Range {
  std::uint64_t address, pages;
  bool inside;  // of the arena
};

Range some_range(fuzz::Decisions& in, const Arena& arena) {
  const auto base = reinterpret_cast<std::uint64_t>(arena.memory);
  const std::uint8_t how = in.byte();
  const std::uint64_t page = in.below(kPages);
  const std::uint64_t count = 1 + in.below(kPages - page);
  switch (how % 16) {
    case 0:  // across an end of the arena
      return {base + page * kPage, kPages + in.byte(), false};
    case 1:
      return {base - (1 + page) * kPage, 1 + in.byte() % kPages, false};
    case 2:  // not aligned
      return {base + page * kPage + 1 + in.number(2) % (kPage - 1), count, false};
    case 3: {  // where there is never anything
      constexpr std::uint64_t kNowhere[] = {0, 0x7ffffffff000, 0x800000000000, 0xffff800000000000, 0xfffffffffffff000,
                                            std::uint64_t{1} << 57};
      return {kNowhere[in.byte() % std::size(kNowhere)], 1 + in.byte() % 15u, false};
    }
    case 4:  // the size in bytes wraps round
      return {base + page * kPage, (std::uint64_t{1} << (52 + in.byte() % 12)) + count, false};
    case 5:
      return {base + page * kPage, 0, false};
    case 6:
      return {base + page * kPage, ~std::uint64_t{0} - in.byte(), false};
    default:
      return {base + page * kPage, count, true};
  }
}

class Client {
 public:
  Client(Arena& arena, int fd) : arena_(arena), fd_(fd) {}

  void step(fuzz::Decisions& in) {
    const std::uint8_t what = in.byte();
    switch (what % 16) {
      case 0:
      case 1:
        return refill(in);
      case 2:
        return touch(in);
      case 3:
        return unknown(in);
      default:
        return command(static_cast<Number>(what % 7), in);
    }
  }

  void check_memory() {
    PROPERTY(std::memcmp(arena_.memory, arena_.model.data(), kPages * kPage) == 0, "memory holds what was written");
  }

 private:
  static unsigned long request(unsigned number) { return mirror::kRequestBase + number; }

  void refill(fuzz::Decisions& in) {
    const std::uint64_t page = in.below(kPages), count = 1 + in.below(kPages - page);
    arena_.refill(page, count, in.number(2));
  }
  void touch(fuzz::Decisions& in) {
    const std::uint64_t at = in.number(3) % (kPages * kPage);
    PROPERTY(arena_.memory[at] == arena_.model[at], "a byte is what was written");
  }
  void unknown(fuzz::Decisions& in) {
    Command block{};
    block.addr = reinterpret_cast<std::uint64_t>(arena_.memory);
    block.ptr = reinterpret_cast<std::uint64_t>(arena_.buffer);
    block.npages = 1;
    const unsigned long number = 9 + in.number(4);
    PROPERTY(mirror::mirror_ioctl(fd_, number < mirror::kRequestBase ? number : 0, &block) < 0,
             "an unknown command is refused");
    PROPERTY(mirror::mirror_ioctl(fd_, request(0), nullptr) == -EFAULT, "no arguments are EFAULT");
  }
  void command(Number number, fuzz::Decisions& in) {
    const Range range = some_range(in, arena_);
    const bool bad_buffer = in.byte() % 16 == 0;
    Command block{range.address, 0, range.pages, in.number(1), in.number(1)};
    block.ptr = bad_buffer ? 8 : reinterpret_cast<std::uint64_t>(arena_.buffer);
    const bool writes = number == Number::kWrite;
    std::memset(arena_.buffer, 0x5a, kPages * kPage);
    if (writes) {
      const std::uint64_t seed = in.number(2);
      for (std::uint64_t at = 0; at < kPages * kPage; at += 8) {
        const std::uint64_t value = at * seed + seed;
        std::memcpy(arena_.buffer + at, &value, 8);
      }
      // A write that wraps round or leaves the arena may have been made in part.
      if (!range.inside) return;
    }
    const int result = mirror::mirror_ioctl(fd_, request(static_cast<unsigned>(number)), &block);
    PROPERTY(result <= 0 && result > -4096, "an answer is 0 or an error number");
    if (range.address % kPage != 0 || range.address >= range.address + range.pages * kPage) {
      PROPERTY(result == -EINVAL, "a range that is none is EINVAL");
      return;
    }
    if (!range.inside) return;
    const std::uint64_t at = range.address - reinterpret_cast<std::uint64_t>(arena_.memory);
    const std::uint64_t bytes = range.pages * kPage;
    if (writes && result == 0 && !bad_buffer) std::memcpy(arena_.model.data() + at, arena_.buffer, bytes);
    PROPERTY(!(bad_buffer && number == Number::kRead && result == 0), "a buffer that cannot be written is an error");
    if (number == Number::kRead && result == 0) {
      PROPERTY(block.cpages == range.pages, "a read counts its pages");
      PROPERTY(std::memcmp(arena_.buffer, arena_.model.data() + at, bytes) == 0, "the device reads what was written");
    }
    PROPERTY(block.addr == range.address && block.npages == range.pages, "arguments are left alone");
  }

  Arena& arena_;
  const int fd_;
};

}  // namespace
}  // namespace whimbrel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace whimbrel;
  static Arena arena;
  static const int nodes[] = {mirror::open_mirror(0, 0), mirror::open_mirror(2, 0)};
  PROPERTY(nodes[0] >= 0 && nodes[1] >= 0, "mirror devices: userfaultfd with page moves is needed");
  fuzz::Decisions in({data, size});
  Client client(arena, nodes[in.byte() % 2]);
  arena.refill(0, kPages, 1);
  for (int steps = 0; !in.at_end() && steps < 48; ++steps) client.step(in);
  client.check_memory();
  return 0;
}
