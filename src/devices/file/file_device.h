// FileDevice: page contents in a file or on a block device: an ExtentDevice over a FileStore.
#pragma once

#include <cstdint>

#include "devices/extents/extent_device.h"
#include "devices/file/file_store.h"

namespace whimbrel {

class FileDevice final : public ExtentDevice {
 public:
  static constexpr std::size_t kMostPath = FileStore::kMostPath;

  struct Options {
    const char* path = "";  // copied; see store_file.h for what it may name
    bool force = false;
    DirectIo direct = DirectIo::kAuto;
    bool ring = true;               // false: pread and pwrite only
    std::uint64_t size_bytes = 0;   // from here on as of ExtentDevice::Options
    std::uint32_t unit_pages = 16;
    CodecId codec = CodecId::kRaw;
    int level = 1;
    bool encrypt = false;
    std::uint32_t depth = 16;
    std::uint64_t max_pages = 1ull << 28;
    std::uint32_t store_workers = 2;
    std::uint32_t load_workers = 4;
    const Clock* clock = nullptr;
  };
  // Makes the file. Errors of StoreFile::open(); kInvalid for options out of range, kNoMemory. Destroy with
  // destroy_from().
  [[nodiscard]] static Result<FileDevice*> create(MemorySource& source, const Options& options) noexcept;

  FileDevice(MemorySource& source, const Options& options) noexcept;
  ~FileDevice() override = default;

  // How transfers are made now: for messages and tests.
  [[nodiscard]] bool is_direct() const noexcept { return store_.is_direct(); }
  [[nodiscard]] bool uses_ring() const noexcept { return ring_; }
  // The file that this process stores to, in the caller's descriptor table; -1: none yet.
  [[nodiscard]] int descriptor() const noexcept { return own() < 0 ? -1 : store_.fd(own()); }

 private:
  FileStore store_;
  bool ring_ = false;
};

}  // namespace whimbrel
