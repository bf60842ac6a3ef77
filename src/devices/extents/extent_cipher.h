// ExtentCipher: what is written to a file made unreadable, and noticed when it was changed: AES-256-GCM with a key that
// is made for one file, lives in engine memory alone and is forgotten with the file.
//
// The tags are kept in memory beside the places they belong to, not in the file: so they also tell contents that are
// out of date from those that were stored last.
//
// libsodium's functions for this take their memory from the caller, lock nothing and need no set-up
// (extent_cipher_needs.cc). They use the processor's AES instructions; without those there is no encryption.
//
// After make_key() constant, so any number of threads may use it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"

namespace whimbrel {

class ExtentCipher {
 public:
  static constexpr std::size_t kTagBytes = 16;
  // Never used twice with one key: a number for each time something is stored, and which part of it this is.
  struct Nonce {
    std::uint64_t store = 0;
    std::uint32_t part = 0;
  };

  ExtentCipher() = default;
  ~ExtentCipher() { forget(); }
  ExtentCipher(const ExtentCipher&) = delete;
  ExtentCipher& operator=(const ExtentCipher&) = delete;

  // Whether this processor can do it.
  [[nodiscard]] static bool is_possible() noexcept;
  // A fresh random key. kNotSupported; kNotPermitted where the kernel gives no random numbers.
  [[nodiscard]] Result<void> make_key() noexcept;
  void forget() noexcept;

  // `from` and `to` may be the same.
  void encrypt(Nonce nonce, std::span<const std::byte> from, std::byte* to, std::byte* tag) const noexcept;
  // In place. False: these are not the bytes that were encrypted with that nonce and tag; they mean nothing then.
  [[nodiscard]] bool decrypt(Nonce nonce, std::span<std::byte> bytes, const std::byte* tag) const noexcept;

 private:
  alignas(16) std::array<std::byte, 512> state_{};
};

}  // namespace whimbrel
