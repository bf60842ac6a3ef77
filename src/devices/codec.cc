#include "devices/codec.h"

#define LZ4_STATIC_LINKING_ONLY
#define ZSTD_STATIC_LINKING_ONLY
#include <lz4.h>
#include <zstd.h>

#include <cstring>

namespace whimbrel {
namespace {

// No magic number, no size, no checksum of zstd's own: the blob header has all of that.
bool set_frame_format(ZSTD_CCtx* context, int level) noexcept {
  return !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_format, ZSTD_f_zstd1_magicless)) &&
         !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)) &&
         !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0)) &&
         !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_dictIDFlag, 0)) &&
         !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 0));
}

char* chars(std::byte* bytes) noexcept { return reinterpret_cast<char*>(bytes); }
const char* chars(const std::byte* bytes) noexcept { return reinterpret_cast<const char*>(bytes); }

}  // namespace

const char* codec_name(CodecId codec) noexcept {
  switch (codec) {
    case CodecId::kRaw:
      return "raw";
    case CodecId::kLz4:
      return "lz4";
    case CodecId::kZstd:
      return "zstd";
  }
  return "?";
}

// --- compressing ----------------------------------------------------------------------------------------------------

Compressor::~Compressor() {
  if (state_ != nullptr) source_->give(state_, state_bytes_);
}

Result<void> Compressor::init(MemorySource& source, CodecId codec, int level, std::size_t max_bytes) noexcept {
  source_ = &source;
  codec_ = codec;
  switch (codec) {
    case CodecId::kRaw:
      return {};
    case CodecId::kLz4:
      state_bytes_ = sizeof(LZ4_stream_t);
      break;
    case CodecId::kZstd:
      if (level < kMinZstdLevel || level > kMaxZstdLevel) return fail(Errc::kInvalid, 0, "zstd level");
      // Sized for the largest unit: a context for any input would be several times as large.
      state_bytes_ = ZSTD_estimateCCtxSize_usingCParams(ZSTD_getCParams(level, max_bytes, 0));
      break;
  }
  if (state_bytes_ == 0) return fail(Errc::kInvalid, 0, "codec");
  state_ = source.take(state_bytes_);
  if (state_ == nullptr) return fail(Errc::kNoMemory, 0, "compressor");
  if (codec == CodecId::kLz4) {
    return LZ4_initStream(state_, state_bytes_) != nullptr ? Result<void>{} : fail(Errc::kInvalid, 0, "LZ4_initStream");
  }
  zstd_ = ZSTD_initStaticCCtx(state_, state_bytes_);
  if (zstd_ == nullptr || !set_frame_format(zstd_, level)) return fail(Errc::kInvalid, 0, "ZSTD_initStaticCCtx");
  return {};
}

std::size_t Compressor::compress(std::span<const std::byte> in, std::span<std::byte> out) noexcept {
  if (in.empty() || out.empty()) return 0;
  switch (codec_) {
    case CodecId::kRaw:
      break;
    case CodecId::kLz4: {
      // The fast reset forgets the previous input without clearing 16 KiB; for small inputs that is half the time.
      const int size = LZ4_compress_fast_extState_fastReset(
          state_, chars(in.data()), chars(out.data()), static_cast<int>(in.size()), static_cast<int>(out.size()), 1);
      return size > 0 ? static_cast<std::size_t>(size) : 0;
    }
    case CodecId::kZstd: {
      const std::size_t size = ZSTD_compress2(zstd_, out.data(), out.size(), in.data(), in.size());
      return ZSTD_isError(size) ? 0 : size;
    }
  }
  return 0;
}

// --- decompressing --------------------------------------------------------------------------------------------------

Decompressor::~Decompressor() {
  if (state_ != nullptr) source_->give(state_, state_bytes_);
}

Result<void> Decompressor::init(MemorySource& source) noexcept {
  source_ = &source;
  state_bytes_ = ZSTD_estimateDCtxSize();
  state_ = source.take(state_bytes_);
  if (state_ == nullptr) return fail(Errc::kNoMemory, 0, "decompressor");
  zstd_ = ZSTD_initStaticDCtx(state_, state_bytes_);
  if (zstd_ == nullptr || ZSTD_isError(ZSTD_DCtx_setParameter(zstd_, ZSTD_d_format, ZSTD_f_zstd1_magicless))) {
    return fail(Errc::kInvalid, 0, "ZSTD_initStaticDCtx");
  }
  return {};
}

bool Decompressor::decompress(CodecId codec, std::span<const std::byte> in, std::span<std::byte> out) noexcept {
  switch (codec) {
    case CodecId::kRaw:
      if (in.size() != out.size()) return false;
      std::memcpy(out.data(), in.data(), out.size());
      return true;
    case CodecId::kLz4:
      return LZ4_decompress_safe(chars(in.data()), chars(out.data()), static_cast<int>(in.size()),
                                 static_cast<int>(out.size())) == static_cast<int>(out.size());
    case CodecId::kZstd: {
      const std::size_t size = ZSTD_decompressDCtx(zstd_, out.data(), out.size(), in.data(), in.size());
      return !ZSTD_isError(size) && size == out.size();
    }
  }
  return false;
}

}  // namespace whimbrel
