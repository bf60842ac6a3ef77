#include "devices/file/file_device.h"

#include <cstring>

namespace whimbrel {
namespace {

ExtentDevice::Options extent_options(const FileDevice::Options& options) noexcept {
  return {.size_bytes = options.size_bytes,
          .unit_pages = options.unit_pages,
          .codec = options.codec,
          .level = options.level,
          .encrypt = options.encrypt,
          .depth = options.depth,
          .max_pages = options.max_pages,
          .store_workers = options.store_workers,
          .load_workers = options.load_workers,
          .clock = options.clock};
}

}  // namespace

FileDevice::FileDevice(MemorySource& source, const Options& options) noexcept
    : ExtentDevice(source, store_, extent_options(options)),
      store_({.path = options.path, .direct = options.direct, .force = options.force}, options.ring) {}

Result<FileDevice*> FileDevice::create(MemorySource& source, const Options& options) noexcept {
  if (const Result<void> good = check(extent_options(options)); !good) return std::unexpected(good.error());
  if (std::strlen(options.path) >= kMostPath) return fail(Errc::kInvalid, 0, "FileDevice path");
  auto* device = make_from<FileDevice>(source, source, options);
  if (device == nullptr) return fail(Errc::kNoMemory, 0, "FileDevice");
  if (const Result<void> ready = device->init(); !ready) {
    destroy_from(source, device);
    return std::unexpected(ready.error());
  }
  device->ring_ = device->store_.try_ring();
  return device;
}

}  // namespace whimbrel
