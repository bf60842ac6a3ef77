#include "devices/extents/extent_cipher.h"

#include <sodium/crypto_aead_aes256gcm.h>
#include <sodium/utils.h>

#include <cstring>

#include "base/check.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

static_assert(sizeof(crypto_aead_aes256gcm_state) == 512 && crypto_aead_aes256gcm_ABYTES == ExtentCipher::kTagBytes);

using NonceBytes = std::array<unsigned char, crypto_aead_aes256gcm_NPUBBYTES>;

NonceBytes bytes_of(ExtentCipher::Nonce nonce) noexcept {
  NonceBytes bytes;
  static_assert(sizeof bytes == sizeof nonce.store + sizeof nonce.part);
  std::memcpy(bytes.data(), &nonce.store, sizeof nonce.store);
  std::memcpy(bytes.data() + sizeof nonce.store, &nonce.part, sizeof nonce.part);
  return bytes;
}

const crypto_aead_aes256gcm_state* as_state(const std::byte* state) noexcept {
  return reinterpret_cast<const crypto_aead_aes256gcm_state*>(state);
}

}  // namespace

bool ExtentCipher::is_possible() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("aes") != 0 && __builtin_cpu_supports("pclmul") != 0 &&
         __builtin_cpu_supports("ssse3") != 0;
#else
  return false;
#endif
}

Result<void> ExtentCipher::make_key() noexcept {
  if (!is_possible())
    return fail(Errc::kNotSupported, 0, "cannot be encrypted: this processor has no AES instructions");
  std::array<unsigned char, crypto_aead_aes256gcm_KEYBYTES> key;
  if (const Result<void> made = sys::random_bytes(key.data(), key.size()); !made) return made;
  (void)crypto_aead_aes256gcm_beforenm(reinterpret_cast<crypto_aead_aes256gcm_state*>(state_.data()), key.data());
  sodium_memzero(key.data(), key.size());
  return {};
}

void ExtentCipher::forget() noexcept { sodium_memzero(state_.data(), state_.size()); }

void ExtentCipher::encrypt(Nonce nonce, std::span<const std::byte> from, std::byte* to, std::byte* tag) const noexcept {
  const NonceBytes number = bytes_of(nonce);
  (void)crypto_aead_aes256gcm_encrypt_detached_afternm(reinterpret_cast<unsigned char*>(to),
                                                       reinterpret_cast<unsigned char*>(tag), nullptr,
                                                       reinterpret_cast<const unsigned char*>(from.data()), from.size(),
                                                       nullptr, 0, nullptr, number.data(), as_state(state_.data()));
}

bool ExtentCipher::decrypt(Nonce nonce, std::span<std::byte> bytes, const std::byte* tag) const noexcept {
  const NonceBytes number = bytes_of(nonce);
  auto* const at = reinterpret_cast<unsigned char*>(bytes.data());
  return crypto_aead_aes256gcm_decrypt_detached_afternm(at, nullptr, at, bytes.size(),
                                                        reinterpret_cast<const unsigned char*>(tag), nullptr, 0,
                                                        number.data(), as_state(state_.data())) == 0;
}

}  // namespace whimbrel
