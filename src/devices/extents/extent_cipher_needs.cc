// What libsodium's AES-GCM refers to in the rest of that library, which would bring a heap, locks and descriptors of
// its own. Named here, so that the linker takes that one part of it and nothing else.
#include <cstddef>

#include "base/check.h"

namespace {

void* wipe(void* memory, std::size_t bytes) noexcept {
  auto* at = static_cast<volatile unsigned char*>(memory);
  for (std::size_t i = 0; i < bytes; ++i) at[i] = 0;
  return memory;
}

}  // namespace

extern "C" {

void sodium_memzero(void* memory, std::size_t bytes) { wipe(memory, bytes); }
// Only called for messages of 64 GiB and more.
[[noreturn]] void sodium_misuse() { CHECK(false, "libsodium was misused"); }
// Only called by functions that make keys, which are not used.
void randombytes_buf(void*, std::size_t) { CHECK(false, "libsodium was asked for random numbers"); }
// Asked by a function that is not used. Left open, a program's own libsodium would answer.
int sodium_runtime_has_aesni() { return 1; }
int sodium_runtime_has_pclmul() { return 1; }

}  // extern "C"
