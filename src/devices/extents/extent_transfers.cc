// ExtentDevice: stores, loads and verify.
#include <bit>
#include <cstring>

#include "base/check.h"
#include "devices/checksum.h"
#include "devices/extents/extent_device.h"
#include "devices/same_filled.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;

std::uint32_t page_sum(const std::byte* page) noexcept {
  return static_cast<std::uint32_t>(checksum64({page, kPageBytes}));
}

bool has_sum(const std::byte* page, const std::byte* mark) noexcept {
  const std::uint32_t sum = page_sum(page);
  return std::memcmp(mark, &sum, sizeof sum) == 0;
}

}  // namespace

void ExtentDevice::submit(DeviceBatch& batch) noexcept {
  load_all(batch);
  store_all(batch);
}

void ExtentDevice::finish(DeviceOp& op, Result<void> result) noexcept {
  if (result) {
    (op.kind == DeviceOp::Kind::kStore ? counters_.stores : counters_.loads)
        .fetch_add(op.pages, std::memory_order_relaxed);
  } else {
    counters_.errors.fetch_add(1, std::memory_order_relaxed);
  }
  op.result = result;
}

std::unexpected<Error> ExtentDevice::failed(int error, const char* what) noexcept {
  Errc code = sys::errc_of(error);
  constexpr int kNoSpace = 28, kTooLarge = 27, kQuota = 122, kBadDescriptor = 9, kNoDevice = 19;
  if (error == kNoSpace || error == kTooLarge || error == kQuota) {
    code = Errc::kDeviceFull;
  } else if (error == kBadDescriptor || error == kNoDevice) {
    code = Errc::kGone;
  } else if (code != Errc::kNoMemory) {
    code = Errc::kDeviceIo;
  }
  const std::unexpected<Error> result = fail(code, error > 0 ? error : 0, what);
  remember(result.error());
  return result;
}

void ExtentDevice::remember(const Error& error) noexcept {
  last_code_.store(error.code, std::memory_order_relaxed);
  last_sys_.store(error.sys, std::memory_order_relaxed);
  last_where_.store(error.where, std::memory_order_relaxed);
}

std::byte* ExtentDevice::bounce_of(Worker& worker, std::uint32_t tag) noexcept {
  std::byte* const buffer = worker.queue->buffer(tag);
  return buffer != nullptr ? buffer : worker.bounce.data() + tag * std::size_t{bounce_bytes_};
}

std::byte* ExtentDevice::seal(Worker& worker, std::uint32_t tag, Volume& volume, Pending& pending,
                            const std::byte* contents) noexcept {
  Extent& extent = pending.extent;
  extent.value = volume.sealed.fetch_add(1, std::memory_order_relaxed);
  std::byte* const to = bounce_of(worker, tag);
  if (extent.state == ExtentState::kCompressed) {
    volume.cipher.encrypt({extent.value, 0}, {contents, extent.bytes}, to, pending.marks.data());
    return to;
  }
  for (std::uint32_t i = 0; i < pending.place.pages; ++i) {
    volume.cipher.encrypt({extent.value, i}, {contents + i * kPageBytes, kPageBytes}, to + i * kPageBytes,
                          pending.marks.data() + i * ExtentCipher::kTagBytes);
  }
  return to;
}

// --- stores ---------------------------------------------------------------------------------------------------------

void ExtentDevice::store_all(DeviceBatch& batch) noexcept {
  std::size_t next = 0;
  const auto find = [&] {
    while (next < batch.ops.size() && batch.ops[next].kind != DeviceOp::Kind::kStore) ++next;
    return next < batch.ops.size();
  };
  while (find()) {
    GatePass pass(table_.gate());
    const Workers::Lease worker(storers_);
    const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
    do {
      // A fork that waits gets its turn with what is under way.
      while (!worker->queue->is_full() && find() && (!table_.gate().is_closing() || worker->queue->in_flight() == 0)) {
        (void)begin_store(*worker, batch.ops[next++]);
        if (table_.gate().is_closing()) break;
      }
      if (worker->queue->in_flight() != 0) end_store(*worker);
    } while (worker->queue->in_flight() != 0 || (find() && !table_.gate().is_closing()));
    if (options_.clock != nullptr) {
      counters_.store_ns.fetch_add(static_cast<std::uint64_t>(options_.clock->now_ns() - start),
                                   std::memory_order_relaxed);
    }
  }
}

bool ExtentDevice::begin_store(Worker& worker, DeviceOp& op) noexcept {
  const auto tag = static_cast<std::uint32_t>(std::countr_zero(worker.free_tags));
  Pending& pending = worker.pending[tag];
  pending.op = &op;
  pending.place = table_.place_of(op.first, op.pages);
  pending.extent = {};
  {
    MutexLock lock(table_.stripe(pending.place.unit));
    const Extent* extent = table_.find_reserved(pending.place);
    if (extent == nullptr || pending.place.page != 0 || extent->pages != op.pages) {
      finish(op, fail(Errc::kInvalid, 0, "store"));
      return false;
    }
  }
  const std::span<const std::byte> contents{op.memory, op.pages * kPageBytes};
  if (const auto word = same_filled(contents)) {
    pending.extent.state = ExtentState::kFilled;
    pending.extent.value = *word;
    finish(op, publish(pending));
    return false;
  }
  const Result<int> own = own_volume();
  if (!own) {
    remember(own.error());
    finish(op, std::unexpected(own.error()));
    return false;
  }
  Extent& extent = pending.extent;
  extent.volume = static_cast<std::uint8_t>(*own);
  extent.state = ExtentState::kRaw;
  extent.bytes = static_cast<std::uint32_t>(contents.size());
  std::byte* memory = op.memory;
  if (options_.codec != CodecId::kRaw) {
    const EncodedBlob blob = worker.encoder.encode(contents);
    if (blob.size() + kBlockBytes <= contents.size()) {  // at least a block less
      memory = bounce_of(worker, tag);
      std::byte* at = memory;
      for (const auto part : {std::as_bytes(std::span(&blob.header, 1)), blob.words, blob.data}) {
        std::memcpy(at, part.data(), part.size());
        at += part.size();
      }
      extent.state = ExtentState::kCompressed;
      extent.bytes = static_cast<std::uint32_t>(blob.size());
      extent.value = blob.header.checksum;
      std::memset(at, 0, extent.blocks() * kBlockBytes - blob.size());  // nothing else of our memory gets there
    }
  }
  if (options_.encrypt) {
    memory = seal(worker, tag, volumes_[*own], pending, memory);
  } else if (extent.state == ExtentState::kRaw) {
    for (std::uint32_t i = 0; i < op.pages; ++i) {
      const std::uint32_t sum = page_sum(op.memory + i * kPageBytes);
      std::memcpy(pending.marks.data() + i * sizeof sum, &sum, sizeof sum);
    }
  }
  const Result<std::uint64_t> block = map_.take(extent.blocks());
  if (!block) {
    remember({block.error().code, 0, ""});  // its size says it all
    finish(op, std::unexpected(block.error()));
    return false;
  }
  extent.block = *block;
  lengthen(*own, (extent.block + extent.blocks()) * kBlockBytes);
  volumes_[*own].units.fetch_add(1, std::memory_order_relaxed);
  worker.free_tags &= worker.free_tags - 1;
  worker.queue->add({.kind = BlockTransfer::Kind::kWrite,
                     .volume = *own,
                     .memory = memory,
                     .bytes = extent.blocks() * Extent::kBlockBytes,
                     .offset = extent.block * kBlockBytes},
                    tag);
  return true;
}

void ExtentDevice::end_store(Worker& worker) noexcept {
  const BlockQueue::Done done = worker.queue->wait();
  worker.free_tags |= std::uint64_t{1} << done.tag;
  const Pending& pending = worker.pending[done.tag];
  Result<void> result{};
  if (done.error != 0) {
    result = failed(done.error, store_.explain(done.error, store_.words().writing));
    if (result.error().code == Errc::kDeviceFull) map_.rewind();
  } else {
    result = publish(pending);
  }
  if (!result) {
    if (!done.may_still_happen) map_.give(pending.extent.block, pending.extent.blocks());
    volumes_[pending.extent.volume].units.fetch_sub(1, std::memory_order_relaxed);
  }
  finish(*pending.op, result);
}

// Makes what was stored visible, in place of what was there before.
Result<void> ExtentDevice::publish(const Pending& pending) noexcept {
  Extent before;
  {
    MutexLock lock(table_.stripe(pending.place.unit));
    Extent* extent = table_.find_reserved(pending.place);
    if (extent == nullptr || extent->pages != pending.place.pages) {
      return fail(Errc::kInvalid, 0, "store into slots released meanwhile");
    }
    before = *extent;
    count(before, before.live, false);
    *extent = pending.extent;
    extent->live = before.live;
    extent->pages = before.pages;
    if (extent->in_store()) {
      std::memcpy(table_.marks(pending.place.unit), pending.marks.data(), extent->pages * mark_bytes_);
    }
    count(*extent, extent->live, true);
  }
  give_blocks(before, before.live);
  return {};
}

// --- loads ----------------------------------------------------------------------------------------------------------

void ExtentDevice::load_all(DeviceBatch& batch) noexcept {
  std::size_t next = 0;
  const auto find = [&] {
    while (next < batch.ops.size() && batch.ops[next].kind != DeviceOp::Kind::kLoad) ++next;
    return next < batch.ops.size();
  };
  if (!find()) return;
  // Never waits for a fork: the fork may be waiting for it.
  const Workers::Lease worker(loaders_);
  const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
  while (find() || worker->queue->in_flight() != 0) {
    while (!worker->queue->is_full() && find()) (void)begin_load(*worker, batch.ops[next++]);
    if (worker->queue->in_flight() != 0) end_load(*worker);
  }
  if (options_.clock != nullptr) {
    counters_.load_ns.fetch_add(static_cast<std::uint64_t>(options_.clock->now_ns() - start),
                                std::memory_order_relaxed);
  }
}

bool ExtentDevice::begin_load(Worker& worker, DeviceOp& op) noexcept {
  const auto tag = static_cast<std::uint32_t>(std::countr_zero(worker.free_tags));
  Pending& pending = worker.pending[tag];
  pending.op = &op;
  pending.place = table_.place_of(op.first, op.pages);
  const Place& place = pending.place;
  {
    MutexLock lock(table_.stripe(place.unit));
    const Extent* extent = table_.find_reserved(place);
    if (extent == nullptr || !extent->stored()) {
      finish(op, fail(Errc::kInvalid, 0, "load of an empty slot"));
      return false;
    }
    pending.extent = *extent;
    // A blob has its mark at the front, whatever part of it is wanted.
    const std::uint32_t from = extent->state == ExtentState::kRaw ? place.page : 0;
    std::memcpy(pending.marks.data(), table_.marks(place.unit) + from * mark_bytes_, place.pages * mark_bytes_);
  }
  const Extent& extent = pending.extent;
  if (extent.state == ExtentState::kFilled) {
    fill_same({op.memory, op.pages * kPageBytes}, extent.value);
    finish(op, {});
    return false;
  }
  if (!store_.is_open(extent.volume)) {
    constexpr int kBadDescriptor = 9;
    finish(op, failed(kBadDescriptor, store_.words().not_inherited));
    return false;
  }
  worker.free_tags &= worker.free_tags - 1;
  const bool raw = extent.state == ExtentState::kRaw;
  worker.queue->add({.kind = BlockTransfer::Kind::kRead,
                     .volume = extent.volume,
                     .memory = raw ? op.memory : bounce_of(worker, tag),
                     .bytes = raw ? static_cast<std::uint32_t>(op.pages * kPageBytes)
                                  : extent.blocks() * Extent::kBlockBytes,
                     .offset = (extent.block + (raw ? place.page : 0)) * kBlockBytes},
                    tag);
  return true;
}

void ExtentDevice::end_load(Worker& worker) noexcept {
  const BlockQueue::Done done = worker.queue->wait();
  worker.free_tags |= std::uint64_t{1} << done.tag;
  const Pending& pending = worker.pending[done.tag];
  if (done.error != 0) {
    const BlockStore::Words& words = store_.words();
    const char* const usual = done.error == BlockQueue::kEnd ? words.ends_early : words.reading;
    finish(*pending.op, failed(done.error, store_.explain(done.error, usual)));
    return;
  }
  finish(*pending.op,
         load(worker, pending, pending.extent.state == ExtentState::kRaw ? nullptr : bounce_of(worker, done.tag)));
}

// What was read becomes contents, or is found to be damaged.
Result<void> ExtentDevice::load(Worker& worker, const Pending& pending, std::byte* blob) noexcept {
  const auto corrupt = [this] {
    const std::unexpected<Error> error = fail(Errc::kCorrupt, 0, store_.words().damaged);
    remember(error.error());
    return error;
  };
  DeviceOp& op = *pending.op;
  const Extent& extent = pending.extent;
  const ExtentCipher& cipher = volumes_[extent.volume].cipher;
  if (blob == nullptr) {
    for (std::uint32_t i = 0; i < op.pages; ++i) {
      std::byte* const page = op.memory + i * kPageBytes;
      const std::byte* const mark = pending.marks.data() + i * mark_bytes_;
      const bool good = options_.encrypt
                            ? cipher.decrypt({extent.value, pending.place.page + i}, {page, kPageBytes}, mark)
                            : has_sum(page, mark);
      if (!good) return corrupt();
    }
    return {};
  }
  if (options_.encrypt && !cipher.decrypt({extent.value, 0}, {blob, extent.bytes}, pending.marks.data())) {
    return corrupt();
  }
  BlobHeader header;
  std::memcpy(&header, blob, sizeof header);
  // A blob may be whole and yet not the one that was stored last; a tag would have told.
  if (!options_.encrypt && header.checksum != extent.value) return corrupt();
  const bool whole = op.pages == extent.pages;
  const std::span<std::byte> contents{whole ? op.memory : worker.contents.data(), extent.pages * kPageBytes};
  if (!decode_blob(worker.decompressor, {blob, extent.bytes}, contents)) {
    return corrupt();
  }
  if (!whole) std::memcpy(op.memory, contents.data() + pending.place.page * kPageBytes, op.pages * kPageBytes);
  return {};
}

Result<bool> ExtentDevice::verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept {
  if (pages == 0 || pages > options_.unit_pages) return fail(Errc::kInvalid, 0, "verify");
  const Workers::Lease worker(loaders_);
  // A unit's own buffer is at its place in `contents`, so that a blob's neighbours do not overwrite it.
  const Place place = table_.place_of(first, pages);
  if (place.page + pages > options_.unit_pages) return fail(Errc::kInvalid, 0, "verify");
  DeviceOp op{.kind = DeviceOp::Kind::kLoad,
              .first = first,
              .pages = pages,
              .memory = worker->contents.data() + place.page * kPageBytes};
  if (begin_load(*worker, op)) end_load(*worker);
  counters_.loads.fetch_sub(op.result ? pages : 0, std::memory_order_relaxed);  // nobody asked for the contents
  if (!op.result) return std::unexpected(op.result.error());
  return std::memcmp(memory, op.memory, pages * kPageBytes) == 0;
}

}  // namespace whimbrel
