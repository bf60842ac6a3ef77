// Codecs: turning page contents into fewer bytes and back, with no allocation after set-up.
//
// A Compressor or Decompressor is one worker's context: all its memory is taken once, by init(). Not thread-safe; each
// thread uses one at a time (see context_pool.h). Only the static libraries are used, so that a program which loads
// its own lz4 or zstd never meets ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/memory_source.h"

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace whimbrel {

// Stored in blobs: numbers never change their meaning.
enum class CodecId : std::uint8_t { kRaw = 0, kLz4 = 1, kZstd = 2 };
[[nodiscard]] const char* codec_name(CodecId codec) noexcept;

inline constexpr int kMinZstdLevel = 1, kMaxZstdLevel = 19;

class Compressor {
 public:
  Compressor() = default;
  ~Compressor();
  Compressor(const Compressor&) = delete;
  Compressor& operator=(const Compressor&) = delete;

  // For inputs of up to `max_bytes`. `level` is zstd's; lz4 has none. kNoMemory, kInvalid.
  [[nodiscard]] Result<void> init(MemorySource& source, CodecId codec, int level, std::size_t max_bytes) noexcept;
  // The number of bytes written to `out`, or 0 when the result does not fit there: then it is not worth having.
  [[nodiscard]] std::size_t compress(std::span<const std::byte> in, std::span<std::byte> out) noexcept;
  [[nodiscard]] CodecId codec() const noexcept { return codec_; }

 private:
  MemorySource* source_ = nullptr;
  void* state_ = nullptr;  // lz4's state or zstd's whole workspace
  std::size_t state_bytes_ = 0;
  ZSTD_CCtx_s* zstd_ = nullptr;  // within state_
  CodecId codec_ = CodecId::kRaw;
};

// Reads what any Compressor wrote.
class Decompressor {
 public:
  Decompressor() = default;
  ~Decompressor();
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;

  // kNoMemory.
  [[nodiscard]] Result<void> init(MemorySource& source) noexcept;
  // True when `in` decodes to exactly as many bytes as `out` has. Whatever `in` holds, nothing beyond `out` is written.
  [[nodiscard]] bool decompress(CodecId codec, std::span<const std::byte> in, std::span<std::byte> out) noexcept;

 private:
  MemorySource* source_ = nullptr;
  void* state_ = nullptr;
  std::size_t state_bytes_ = 0;
  ZSTD_DCtx_s* zstd_ = nullptr;
};

}  // namespace whimbrel
