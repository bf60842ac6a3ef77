// The command interface of the HMM test device, as its clients know it (ABI-05, ABI-06, SN-02).
#pragma once

#include <cstdint>

namespace whimbrel::mirror {

struct Command {
  std::uint64_t addr;
  std::uint64_t ptr;
  std::uint64_t npages;
  std::uint64_t cpages;
  std::uint64_t faults;
};
static_assert(sizeof(Command) == 40);

enum class Number : std::uint8_t {
  kRead = 0, kWrite = 1, kMigrateToDev = 2, kMigrateToSys = 3, kSnapshot = 4, kExclusive = 5, kCheckExclusive = 6,
  kRelease = 7, kFlags = 8,
};
inline constexpr unsigned long kRequestBase = 0xC0284800;
inline constexpr std::uint64_t kFlagFailAlloc = 1;
inline constexpr int kNodes = 4;

// One byte of a snapshot.
inline constexpr std::uint8_t kProtError = 0xff, kProtNone = 0x00, kProtRead = 0x01, kProtWrite = 0x02, kProtPmd = 0x04,
                              kProtZero = 0x10, kProtPrivateLocal = 0x20, kProtCoherentLocal = 0x40,
                              kProtCoherentRemote = 0x50;

}  // namespace whimbrel::mirror
