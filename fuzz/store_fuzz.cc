// The file device: units are stored, the file is damaged as the input says, units are read again. What comes back is
// what was stored, or an error; never anything else. Compressed and encrypted files as well.
//
//   byte 0   which of the devices;  then operations of one byte each with their numbers
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "devices/file/file_device.h"
#include "fuzz/fuzz.h"
#include "mm/heap_source.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::uint32_t kUnit = 4;
constexpr std::size_t kUnits = 16;
constexpr std::uint64_t kFileBytes = 1 << 20;

HeapSource& heap() {
  static HeapSource one;
  return one;
}

FileDevice::Options options_of(std::size_t which) {
  constexpr CodecId kCodecs[] = {CodecId::kRaw, CodecId::kLz4, CodecId::kZstd};
  FileDevice::Options options{.path = "/dev/shm", .direct = DirectIo::kOff, .ring = false, .size_bytes = kFileBytes};
  options.unit_pages = kUnit;
  options.codec = kCodecs[which % 3];
  options.encrypt = which >= 3 && ExtentCipher::is_possible();
  options.max_pages = 1 << 12;
  options.store_workers = options.load_workers = 1;
  return options;
}

// Made once: what is left of one input is released at its end.
FileDevice& device(std::size_t which) {
  static FileDevice* all[6] = {};
  if (all[which] == nullptr) {
    const Result<FileDevice*> made = FileDevice::create(heap(), options_of(which));
    PROPERTY(made.has_value(), "a file device in /dev/shm");
    all[which] = *made;
  }
  return *all[which];
}

struct Unit {
  DeviceSlot first{};
  std::uint32_t pages = 0;  // 0: nothing stored
  std::vector<std::byte> contents;
};

struct Aligned {
  Aligned() : bytes(static_cast<std::byte*>(std::aligned_alloc(kPage, kUnit * kPage))) {}
  ~Aligned() { std::free(bytes); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  std::byte* const bytes;
};

void fill(fuzz::Decisions& in, std::byte* to, std::uint32_t pages) {
  const std::uint8_t how = in.byte();
  std::uint64_t word = in.number(2);
  for (std::size_t at = 0; at < pages * kPage; at += 8) {
    if (how % 4 != 0) word = word * 0x9e3779b97f4a7c15u + (how % 4 == 1 ? at : at / 64);
    const std::uint64_t value = how % 4 == 2 ? word >> 56 : word;
    std::memcpy(to + at, &value, 8);
  }
}

void store(fuzz::Decisions& in, FileDevice& to, Unit& unit) {
  if (unit.pages != 0) return;
  const auto pages = static_cast<std::uint32_t>(1 + in.below(kUnit));
  const Result<DeviceSlot> slot = to.reserve(pages);
  if (!slot) return;
  Aligned memory;
  fill(in, memory.bytes, pages);
  DeviceOp op{.kind = DeviceOp::Kind::kStore, .first = *slot, .pages = pages, .memory = memory.bytes};
  DeviceBatch batch{.ops = {&op, 1}};
  to.submit(batch);
  to.wait(batch);
  PROPERTY(op.result || op.result.error().code == Errc::kDeviceFull, "a store into a sound file succeeds or is full");
  if (!op.result) return to.release(*slot, pages);
  unit = {*slot, pages, {memory.bytes, memory.bytes + pages * kPage}};
}

void load(fuzz::Decisions& in, FileDevice& from, const Unit& unit, bool damaged) {
  if (unit.pages == 0) return;
  const auto first = static_cast<std::uint32_t>(in.below(unit.pages));
  const auto pages = static_cast<std::uint32_t>(1 + in.below(unit.pages - first));
  Aligned memory;
  DeviceOp op{.kind = DeviceOp::Kind::kLoad, .first = unit.first + first, .pages = pages, .memory = memory.bytes};
  DeviceBatch batch{.ops = {&op, 1}};
  from.submit(batch);
  from.wait(batch);
  PROPERTY(op.result || damaged, "what is sound can be read");
  if (!op.result) {
    const Errc code = op.result.error().code;
    PROPERTY(code == Errc::kCorrupt || code == Errc::kDeviceIo, "damage is kCorrupt or an I/O error");
    return;
  }
  PROPERTY(std::memcmp(memory.bytes, unit.contents.data() + first * kPage, pages * kPage) == 0,
           "what is read is what was stored");
  const Result<bool> same = from.verify(unit.first + first, pages, memory.bytes);
  PROPERTY(!same || *same, "verify knows what was stored");
}

void damage(fuzz::Decisions& in, FileDevice& of) {
  const int fd = of.descriptor();
  if (fd < 0) return;
  const std::uint8_t how = in.byte();
  const std::uint64_t at = in.number(2) * 61 % kFileBytes;
  if (how % 8 == 0) {
    (void)!ftruncate(fd, static_cast<off_t>(at));
    (void)!ftruncate(fd, kFileBytes);
    return;
  }
  if (how % 8 == 1) {  // one unit where another should be
    char block[kPage] = {};
    const std::uint64_t from = at / kPage * kPage, to = in.byte() * kPage % kFileBytes;
    if (pread(fd, block, kPage, static_cast<off_t>(from)) == kPage) (void)!pwrite(fd, block, kPage, static_cast<off_t>(to));
    return;
  }
  const auto bytes = in.bytes(1 + how / 8);
  (void)!pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(at));
}

}  // namespace
}  // namespace whimbrel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace whimbrel;
  fuzz::Decisions in({data, size});
  FileDevice& store_device = device(in.below(6));
  Unit units[kUnits];
  bool damaged = false;
  for (int steps = 0; !in.at_end() && steps < 64; ++steps) {
    const std::uint8_t what = in.byte();
    Unit& unit = units[what / 8 % kUnits];
    switch (what % 8) {
      case 0:
      case 1:
      case 2:
        store(in, store_device, unit);
        break;
      case 3:
      case 4:
      case 5:
        load(in, store_device, unit, damaged);
        break;
      case 6:
        if (unit.pages != 0) store_device.release(unit.first, unit.pages);
        unit = {};
        (void)store_device.maintain(1 << 16);
        break;
      default:
        damage(in, store_device);
        damaged = true;
        break;
    }
  }
  for (Unit& unit : units) {
    load(in, store_device, unit, damaged);
    if (unit.pages != 0) store_device.release(unit.first, unit.pages);
  }
  PROPERTY(store_device.stats().stored_pages == 0, "what is released is not counted");
  return 0;
}
