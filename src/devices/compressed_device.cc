#include "devices/compressed_device.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "devices/same_filled.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;

// Segments small enough that a small capacity is used up to a few percent.
std::size_t segment_bytes(const CompressedDevice::Options& options) noexcept {
  constexpr std::size_t kSmallest = std::size_t{64} << 10, kLargest = std::size_t{2} << 20;
  if (options.segment_bytes != 0) return options.segment_bytes;
  if (options.capacity_bytes == 0 || options.capacity_bytes / 32 >= kLargest) return kLargest;
  const std::size_t fitting = std::bit_floor(static_cast<std::size_t>(options.capacity_bytes / 32));
  return fitting < kSmallest ? kSmallest : fitting;
}

// A chain of forks can pile up inherited segments beyond the capacity, so the directory has room for many of those.
ChunkPool::Options pool_options(const CompressedDevice::Options& options) noexcept {
  ChunkPool::Options pool{.segment_bytes = segment_bytes(options)};
  if (pool.segment_bytes < std::size_t{2} << 20) pool.max_bytes = std::uint64_t{8} << 30;
  return pool;
}

}  // namespace

// --- set-up ---------------------------------------------------------------------------------------------------------

Result<CompressedDevice*> CompressedDevice::create(MemorySource& source, const Options& options) noexcept {
  if (!std::has_single_bit(options.unit_pages) || options.unit_pages > kMaxBlobPages) {
    return fail(Errc::kInvalid, 0, "unit_pages");
  }
  if (options.codec == CodecId::kRaw) return fail(Errc::kInvalid, 0, "codec");
  if (options.store_contexts == 0 || options.load_contexts == 0 || options.max_pages < options.unit_pages) {
    return fail(Errc::kInvalid, 0, "CompressedDevice options");
  }
  auto* device = make_from<CompressedDevice>(source, source, options);
  if (device == nullptr) return fail(Errc::kNoMemory, 0, "CompressedDevice");
  const Result<void> ready = device->init();
  if (ready) return device;
  destroy_from(source, device);
  return std::unexpected(ready.error());
}

CompressedDevice::CompressedDevice(MemorySource& source, const Options& options) noexcept
    : options_(options),
      source_(source),
      allowance_(options.capacity_bytes),
      pool_(source, allowance_, pool_options(options)),
      table_(source, {.max_units = options.max_pages / options.unit_pages,
                      .unit_pages = options.unit_pages,
                      .allowance = &allowance_}),
      encoders_(source, options.store_contexts),
      loaders_(source, options.load_contexts) {}

Result<void> CompressedDevice::init() noexcept {
  if (!pool_.valid() || !table_.valid() || encoders_.empty() || loaders_.empty()) {
    return fail(Errc::kNoMemory, 0, "CompressedDevice tables");
  }
  for (BlobEncoder& encoder : encoders_) {
    if (const auto ready = encoder.init(source_, options_.codec, options_.level, options_.unit_pages); !ready) {
      return ready;
    }
  }
  for (LoadContext& context : loaders_) {
    if (const auto ready = context.decompressor.init(source_); !ready) return ready;
    context.blob = SourceArray<std::byte>(source_, max_blob_bytes(options_.unit_pages));
    context.contents = SourceArray<std::byte>(source_, options_.unit_pages * kPageBytes);
    if (context.blob.empty() || context.contents.empty()) return fail(Errc::kNoMemory, 0, "load context");
  }
  return {};
}

DeviceTraits CompressedDevice::traits() const noexcept {
  return {.name = codec_name(options_.codec),
          .unit_pages = options_.unit_pages,
          .slots = options_.max_pages / options_.unit_pages * options_.unit_pages};
}

// --- statistics -----------------------------------------------------------------------------------------------------

DeviceStats CompressedDevice::stats() const noexcept {
  GatePass pass(table_.gate());  // also here, or a child could inherit a lock held by a thread that it does not have
  constexpr auto kRelaxed = std::memory_order_relaxed;
  return {.stored_pages = counters_.stored_pages.load(kRelaxed),
          .same_filled_pages = counters_.same_filled_pages.load(kRelaxed),
          .raw_pages = counters_.raw_pages.load(kRelaxed),
          .compressed_bytes = counters_.blob_bytes.load(kRelaxed),
          .held_bytes = pool_.stats().held_bytes + table_.held_bytes(),
          .capacity_bytes = options_.capacity_bytes,
          .stores = counters_.stores.load(kRelaxed),
          .loads = counters_.loads.load(kRelaxed),
          .store_ns = counters_.store_ns.load(kRelaxed),
          .load_ns = counters_.load_ns.load(kRelaxed),
          .errors = counters_.errors.load(kRelaxed)};
}

// Adds or takes away these pages of a unit. The blob counts with its last page.
void CompressedDevice::count(const Unit& unit, std::uint16_t pages, bool add) noexcept {
  if (!unit.stored()) return;
  const auto change = [add](std::atomic<std::uint64_t>& counter, std::uint64_t by) {
    if (add) {
      counter.fetch_add(by, std::memory_order_relaxed);
    } else {
      counter.fetch_sub(by, std::memory_order_relaxed);
    }
  };
  const auto number = [](std::uint32_t mask) { return static_cast<std::uint64_t>(std::popcount(mask)); };
  change(counters_.stored_pages, number(pages));
  const std::uint32_t filled = unit.state == UnitState::kFilled ? pages : pages & unit.filled;
  if (filled != 0) change(counters_.same_filled_pages, number(filled));
  if (unit.state == UnitState::kRawBlob) change(counters_.raw_pages, number(pages & ~filled));
  if (unit.has_blob() && pages == unit.live) change(counters_.blob_bytes, unit.high);
}

// --- slots ----------------------------------------------------------------------------------------------------------

Result<DeviceSlot> CompressedDevice::reserve(std::uint32_t pages) noexcept { return table_.reserve(pages); }

void CompressedDevice::release(DeviceSlot first, std::uint32_t pages) noexcept {
  table_.release(first, pages, [this](const Place& place) { release_in_unit(place); });
}

void CompressedDevice::release_in_unit(const Place& place) noexcept {
  std::uint32_t chain = ChunkPool::kNone;
  {
    MutexLock lock(table_.stripe(place.unit));
    Unit* unit = table_.find_reserved(place);
    CHECK(unit != nullptr, "release of a slot that is not reserved");
    count(*unit, static_cast<std::uint16_t>(place.mask()), false);
    unit->live = static_cast<std::uint16_t>(unit->live & ~place.mask());
    if (unit->live != 0) return;
    if (unit->has_blob()) chain = unit->low;
    *unit = {};
  }
  pool_.free_chain(chain);
  table_.give(place.unit);
}

// --- transfers ------------------------------------------------------------------------------------------------------

void CompressedDevice::submit(DeviceBatch& batch) noexcept {
  for (DeviceOp& op : batch.ops) {
    if (op.kind == DeviceOp::Kind::kLoad) {
      op.result = run(op);  // never waits for a fork: the fork may be waiting for it
    } else {
      GatePass pass(table_.gate());  // one by one: a fork waits for one unit, not for the batch
      op.result = run(op);
    }
  }
}

Result<void> CompressedDevice::run(const DeviceOp& op) noexcept {
  const bool storing = op.kind == DeviceOp::Kind::kStore;
  const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
  const Result<void> result = storing ? store(op) : load(op);
  if (options_.clock != nullptr) {
    const auto took = static_cast<std::uint64_t>(options_.clock->now_ns() - start);
    (storing ? counters_.store_ns : counters_.load_ns).fetch_add(took, std::memory_order_relaxed);
  }
  if (result) {
    (storing ? counters_.stores : counters_.loads).fetch_add(op.pages, std::memory_order_relaxed);
  } else {
    counters_.errors.fetch_add(1, std::memory_order_relaxed);
  }
  return result;
}

Result<void> CompressedDevice::store(const DeviceOp& op) noexcept {
  const Place place = table_.place_of(op.first, op.pages);
  {
    MutexLock lock(table_.stripe(place.unit));
    const Unit* unit = table_.find_reserved(place);
    if (unit == nullptr || place.page != 0 || unit->pages != op.pages) return fail(Errc::kInvalid, 0, "store");
  }
  const std::span<const std::byte> contents{op.memory, op.pages * kPageBytes};
  if (const auto word = same_filled(contents)) {
    Unit fresh{};
    fresh.state = UnitState::kFilled;
    fresh.set_word(*word);
    return publish(place, fresh);
  }
  return store_blob(place, contents, op.shrink_only);
}

Result<void> CompressedDevice::store_blob(const Place& place, std::span<const std::byte> contents,
                                          bool shrink_only) noexcept {
  const ContextPool<BlobEncoder>::Lease encoder(encoders_);
  const EncodedBlob blob = encoder->encode(contents);
  if (shrink_only && blob.size() > contents.size() / 8 * 7) return fail(Errc::kNotSupported, 0, "does not shrink");
  const ChunkPool::Part parts[] = {std::as_bytes(std::span(&blob.header, 1)), blob.words, blob.data};
  const Result<std::uint32_t> head = pool_.put(static_cast<std::uint32_t>(place.unit), parts);
  if (!head) return std::unexpected(head.error());
  Unit fresh{};
  fresh.state = blob.raw() ? UnitState::kRawBlob : UnitState::kBlob;
  fresh.low = *head;
  fresh.high = static_cast<std::uint32_t>(blob.size());
  fresh.filled = blob.header.filled;
  return publish(place, fresh);
}

// Makes what was stored visible, in place of what was there before.
Result<void> CompressedDevice::publish(const Place& place, Unit fresh) noexcept {
  std::uint32_t unused = fresh.has_blob() ? fresh.low : ChunkPool::kNone;
  Result<void> result = fail(Errc::kInvalid, 0, "store into slots released meanwhile");
  {
    MutexLock lock(table_.stripe(place.unit));
    Unit* unit = table_.find_reserved(place);
    if (unit != nullptr && unit->pages == place.pages) {
      unused = unit->has_blob() ? unit->low : ChunkPool::kNone;
      count(*unit, unit->live, false);
      fresh.live = unit->live;
      fresh.pages = unit->pages;
      *unit = fresh;
      count(*unit, unit->live, true);
      result = {};
    }
  }
  pool_.free_chain(unused);
  return result;
}

Result<Unit> CompressedDevice::look_up(const Place& place) noexcept {
  MutexLock lock(table_.stripe(place.unit));
  const Unit* unit = table_.find_reserved(place);
  if (unit == nullptr || !unit->stored()) return fail(Errc::kInvalid, 0, "load of an empty slot");
  return *unit;
}

Result<void> CompressedDevice::load(const DeviceOp& op) noexcept {
  const Place place = table_.place_of(op.first, op.pages);
  const std::size_t bytes = op.pages * kPageBytes;
  const Result<Unit> unit = look_up(place);
  if (!unit) return std::unexpected(unit.error());
  if (unit->state == UnitState::kFilled) {
    fill_same({op.memory, bytes}, unit->word());
    return {};
  }
  const bool whole = op.pages == unit->pages;
  const ContextPool<LoadContext>::Lease context(loaders_);
  const auto contents = read_unit(place, *context, whole ? op.memory : nullptr, BlobCheck::kChecksum);
  if (!contents) return std::unexpected(contents.error());
  if (!whole) std::memcpy(op.memory, contents->data() + place.page * kPageBytes, bytes);
  return {};
}

Result<std::span<const std::byte>> CompressedDevice::read_unit(const Place& place, LoadContext& context,
                                                               std::byte* whole, BlobCheck check) noexcept {
  std::span<std::byte> contents{whole != nullptr ? whole : context.contents.data(), 0};
  std::span<std::byte> blob{context.blob.data(), 0};
  BlobHeader header;
  bool direct = false;
  {
    MutexLock lock(table_.stripe(place.unit));
    const Unit* unit = table_.find_reserved(place);
    if (unit == nullptr || !unit->has_blob()) return fail(Errc::kInvalid, 0, "load of slots being changed");
    contents = {contents.data(), unit->pages * kPageBytes};
    blob = {blob.data(), unit->high};
    direct = unit->state == UnitState::kRawBlob && unit->filled == 0;
    const ChunkPool::Target parts[] = {std::as_writable_bytes(std::span(&header, 1)), contents};
    const bool copied = direct ? pool_.get(unit->low, parts) : pool_.get(unit->low, {&blob, 1});
    if (!copied) return fail(Errc::kCorrupt, 0, "chain of chunks");
  }
  const Result<void> good =
      direct ? check_raw_blob(header, contents, check) : decode_blob(context.decompressor, blob, contents, check);
  if (!good) return std::unexpected(good.error());
  return contents;
}

Result<bool> CompressedDevice::verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept {
  const Place place = table_.place_of(first, pages);
  const std::size_t bytes = pages * kPageBytes;
  const Result<Unit> unit = look_up(place);
  if (!unit) return std::unexpected(unit.error());
  if (unit->state == UnitState::kFilled) return same_filled({memory, bytes}) == unit->word();
  const ContextPool<LoadContext>::Lease context(loaders_);
  const auto contents = read_unit(place, *context, nullptr, BlobCheck::kNone);
  if (!contents) return std::unexpected(contents.error());
  return std::memcmp(memory, contents->data() + place.page * kPageBytes, bytes) == 0;
}

// --- upkeep and fork ------------------------------------------------------------------------------------------------

bool CompressedDevice::maintain(std::size_t budget_bytes) noexcept {
  GatePass pass(table_.gate());
  const std::size_t chunks = budget_bytes / kChunkBytes;
  return pool_.compact_step(chunks < 1 ? 1 : static_cast<std::uint32_t>(chunks), *this).more;
}

std::uint32_t* CompressedDevice::lock_blob(std::uint32_t token) noexcept NO_THREAD_SAFETY_ANALYSIS {
  table_.stripe(token).lock();
  Unit* unit = table_.find(token);
  return unit != nullptr && unit->has_blob() ? &unit->low : nullptr;
}

void CompressedDevice::unlock_blob(std::uint32_t token) noexcept NO_THREAD_SAFETY_ANALYSIS {
  table_.stripe(token).unlock();
}

void CompressedDevice::after_fork_in_child() noexcept {
  // Loads of the parent may have been under way.
  table_.reset_stripes_after_fork();
  loaders_.reset_in_child();
  pool_.freeze_all();
  table_.gate().open_in_child();
}

}  // namespace whimbrel
