#include "devices/file/file_device.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr std::uint32_t kMostBounces = 8;  // about 70 KiB each

}  // namespace

// --- set-up ---------------------------------------------------------------------------------------------------------

Result<FileDevice*> FileDevice::create(MemorySource& source, const Options& options) noexcept {
  const std::uint32_t most = options.codec == CodecId::kRaw ? kMostUnitPages : kMaxBlobPages;
  if (!std::has_single_bit(options.unit_pages) || options.unit_pages > most)
    return fail(Errc::kInvalid, 0, "unit_pages");
  if (options.store_workers == 0 || options.load_workers == 0 || options.max_pages < options.unit_pages ||
      options.depth == 0 || options.depth > FileQueue::kMost || std::strlen(options.path) >= kMostPath) {
    return fail(Errc::kInvalid, 0, "FileDevice options");
  }
  if (options.encrypt && !FileCipher::is_possible()) {
    return fail(Errc::kNotSupported, 0, "cannot be encrypted: this processor has no AES instructions");
  }
  auto* device = make_from<FileDevice>(source, source, options);
  if (device == nullptr) return fail(Errc::kNoMemory, 0, "FileDevice");
  const Result<void> ready = device->init();
  if (ready) return device;
  destroy_from(source, device);
  return std::unexpected(ready.error());
}

std::uint64_t FileDevice::block_limit(const Options& options) noexcept {
  const std::uint64_t blocks = options.size_bytes / kBlockBytes;
  return blocks != 0 && blocks < options.max_pages ? blocks : options.max_pages;
}

FileDevice::FileDevice(MemorySource& source, const Options& options) noexcept
    : options_(options),
      source_(source),
      map_(source, block_limit(options)),
      table_(source, options.max_pages / options.unit_pages, options.unit_pages,
             options.encrypt ? FileCipher::kTagBytes : sizeof(std::uint32_t)),
      storers_(source, options.store_workers),
      loaders_(source, options.load_workers) {
  std::memcpy(path_, options.path, std::strlen(options.path));
  options_.path = path_;
  if (options_.encrypt) {
    mark_bytes_ = FileCipher::kTagBytes;
    bounce_bytes_ = static_cast<std::uint32_t>(options.unit_pages * kBlockBytes);
  }
  if (options_.codec != CodecId::kRaw) {
    bounce_bytes_ =
        static_cast<std::uint32_t>((max_blob_bytes(options.unit_pages) + kBlockBytes - 1) & ~(kBlockBytes - 1));
  }
  if (bounce_bytes_ != 0 && options_.depth > kMostBounces) options_.depth = kMostBounces;
}

Result<void> FileDevice::init() noexcept {
  if (!map_.valid() || !table_.valid() || storers_.empty() || loaders_.empty()) {
    return fail(Errc::kNoMemory, 0, "FileDevice tables");
  }
  for (Worker& worker : storers_) {
    if (const auto ready = init_worker(worker, true); !ready) return ready;
  }
  for (Worker& worker : loaders_) {
    if (const auto ready = init_worker(worker, false); !ready) return ready;
  }
  const Result<int> own = own_volume();
  if (!own) return std::unexpected(own.error());
  const StoreFile& file = volumes_[*own].file;
  direct_ = file.is_direct();
  can_make_again_ = file.can_be_made_again();
  if (options_.ring) {
    const Workers::Lease worker(loaders_);
    ring_ = worker->queue.prepare();
  }
  owner_.store(sys::gettid(), std::memory_order_relaxed);
  return {};
}

Result<void> FileDevice::init_worker(Worker& worker, bool stores) noexcept {
  worker.queue.set_up(options_.depth, options_.ring);
  worker.free_tags = options_.depth == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << options_.depth) - 1;
  worker.pending = SourceArray<Pending>(source_, options_.depth);
  if (worker.pending.empty()) return fail(Errc::kNoMemory, 0, "FileDevice worker");
  if (!stores) {
    worker.contents = SourceArray<std::byte>(source_, options_.unit_pages * kBlockBytes);
    if (worker.contents.empty()) return fail(Errc::kNoMemory, 0, "FileDevice worker");
  }
  if (options_.codec == CodecId::kRaw && !(stores && options_.encrypt)) return {};
  worker.bounce = SourceArray<std::byte>(source_, options_.depth * std::size_t{bounce_bytes_});
  if (worker.bounce.empty()) return fail(Errc::kNoMemory, 0, "FileDevice worker");
  if (options_.codec == CodecId::kRaw) return {};
  return stores ? worker.encoder.init(source_, options_.codec, options_.level, options_.unit_pages)
                : worker.decompressor.init(source_);
}

StoreFileOptions FileDevice::file_options() const noexcept {
  return {.path = path_, .direct = options_.direct, .force = options_.force};
}

Result<int> FileDevice::own_volume() noexcept {
  if (const int own = own_.load(std::memory_order_acquire); own >= 0) return own;
  MutexLock lock(files_mutex_);
  if (const int own = own_.load(std::memory_order_relaxed); own >= 0) return own;
  if (!can_make_again_) return fail(Errc::kDeviceFull, 0, "a forked process has no part of that device");
  for (int i = 0; i < kMostFiles; ++i) {
    Volume& volume = volumes_[i];
    if (volume.file.is_open() || volume.units.load(std::memory_order_relaxed) != 0) continue;
    volume.length.store(0, std::memory_order_relaxed);
    const Result<void> opened = volume.file.open(file_options());
    if (!opened) return std::unexpected(opened.error());
    if (options_.encrypt) {
      // Also in a child that has its parent's keys: no two files are encrypted with the same.
      if (const Result<void> made = volume.cipher.make_key(); !made) {
        volume.file.close();
        return std::unexpected(made.error());
      }
      volume.sealed.store(0, std::memory_order_relaxed);
    }
    const std::uint64_t fixed = volume.file.fixed_bytes();
    if (fixed != 0) map_.set_limit(fixed / kBlockBytes);
    own_.store(i, std::memory_order_release);
    return i;
  }
  return fail(Errc::kDeviceFull, 0, "too many generations of forked processes share files");
}

void FileDevice::lengthen(Volume& volume, std::uint64_t bytes) noexcept {
  constexpr std::uint64_t kStep = std::uint64_t{1} << 30;
  if (bytes <= volume.length.load(std::memory_order_acquire)) return;
  MutexLock lock(files_mutex_);  // out of order they would cut the file
  if (bytes <= volume.length.load(std::memory_order_relaxed)) return;
  const std::uint64_t length = (bytes + kStep - 1) / kStep * kStep;
  volume.file.lengthen(length);
  volume.length.store(length, std::memory_order_release);
}

DeviceTraits FileDevice::traits() const noexcept {
  return {.name = "file",
          .unit_pages = options_.unit_pages,
          .slots = options_.max_pages / options_.unit_pages * options_.unit_pages,
          .in_process_memory = false};
}

int FileDevice::descriptor() const noexcept {
  const int own = own_.load(std::memory_order_acquire);
  return own < 0 ? -1 : volumes_[own].file.fd();
}

// --- statistics -----------------------------------------------------------------------------------------------------

DeviceStats FileDevice::stats() const noexcept {
  GatePass pass(table_.gate());  // also here, or a child could inherit a lock held by a thread that it does not have
  constexpr auto kRelaxed = std::memory_order_relaxed;
  const BlockMap::Stats blocks = map_.stats();
  return {.stored_pages = counters_.stored_pages.load(kRelaxed),
          .same_filled_pages = counters_.same_filled_pages.load(kRelaxed),
          .raw_pages = counters_.raw_pages.load(kRelaxed),
          .compressed_bytes = counters_.file_bytes.load(kRelaxed),
          .held_bytes = (blocks.used + blocks.dead) * kBlockBytes,
          .capacity_bytes = options_.size_bytes,
          .stores = counters_.stores.load(kRelaxed),
          .loads = counters_.loads.load(kRelaxed),
          .store_ns = counters_.store_ns.load(kRelaxed),
          .load_ns = counters_.load_ns.load(kRelaxed),
          .errors = counters_.errors.load(kRelaxed)};
}

Error FileDevice::last_error() const noexcept {
  return {last_code_.load(std::memory_order_relaxed), last_sys_.load(std::memory_order_relaxed),
          last_where_.load(std::memory_order_relaxed)};
}

// Adds or takes away these pages of a unit. A blob counts with its last page.
void FileDevice::count(const Extent& extent, std::uint64_t pages, bool add) noexcept {
  if (!extent.stored()) return;
  const auto change = [add](std::atomic<std::uint64_t>& counter, std::uint64_t by) {
    add ? counter.fetch_add(by, std::memory_order_relaxed) : counter.fetch_sub(by, std::memory_order_relaxed);
  };
  const auto number = static_cast<std::uint64_t>(std::popcount(pages));
  change(counters_.stored_pages, number);
  if (extent.state == ExtentState::kFilled) change(counters_.same_filled_pages, number);
  if (extent.state == ExtentState::kRaw) {
    change(counters_.raw_pages, number);
    change(counters_.file_bytes, number * kBlockBytes);
  }
  if (extent.state == ExtentState::kCompressed && pages == extent.live) change(counters_.file_bytes, extent.bytes);
}

// --- slots ----------------------------------------------------------------------------------------------------------

Result<DeviceSlot> FileDevice::reserve(std::uint32_t pages) noexcept { return table_.reserve(pages); }

void FileDevice::release(DeviceSlot first, std::uint32_t pages) noexcept {
  table_.release(first, pages, [this](const Place& place) { release_in_unit(place); });
}

void FileDevice::release_in_unit(const Place& place) noexcept {
  Extent before;
  {
    MutexLock lock(table_.stripe(place.unit));
    Extent* extent = table_.find_reserved(place);
    CHECK(extent != nullptr, "release of a slot that is not reserved");
    count(*extent, place.mask(), false);
    before = *extent;
    extent->live &= ~place.mask();
    if (extent->live == 0) *extent = {};
  }
  give_blocks(before, place.mask());
  if (before.live == place.mask()) table_.give(place.unit);
}

void FileDevice::give_blocks(const Extent& extent, std::uint64_t pages) noexcept {
  if (!extent.in_file()) return;
  const bool ours = extent.file == own_.load(std::memory_order_acquire);
  const bool last = extent.live == pages;
  if (ours && extent.state == ExtentState::kRaw) {
    while (pages != 0) {
      const auto first = static_cast<std::uint32_t>(std::countr_zero(pages));
      const auto run = static_cast<std::uint32_t>(std::countr_one(pages >> first));
      map_.give(extent.block + first, run);
      pages = run == 64 ? 0 : pages & ~(((std::uint64_t{1} << run) - 1) << first);
    }
  } else if (ours && last) {
    map_.give(extent.block, extent.blocks());
  }
  if (last) volumes_[extent.file].units.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace whimbrel
