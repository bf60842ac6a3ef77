#include "linux/known_contents.h"

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string_view>

#include "linux/sys.h"

namespace whimbrel {
namespace {

using namespace std::string_view_literals;

struct Signature {
  std::uint64_t offset;
  std::string_view bytes;
  const char* what;
};

// Of each format its magic number and where it lies.
constexpr Signature kSignatures[] = {
    {0x438, "\x53\xef"sv, "holds an ext2, ext3 or ext4 file system"},
    {0, "XFSB"sv, "holds an XFS file system"},
    {0x10040, "_BHRfS_M"sv, "holds a Btrfs file system"},
    {0x400, "\x10\x20\xf5\xf2"sv, "holds an F2FS file system"},
    {0x400, "\xe2\xe1\xf5\xe0"sv, "holds an EROFS file system"},
    {0, "hsqs"sv, "holds a SquashFS file system"},
    {0x8001, "CD001"sv, "holds an ISO 9660 file system"},
    {3, "NTFS    "sv, "holds an NTFS file system"},
    {3, "EXFAT   "sv, "holds an exFAT file system"},
    {54, "FAT1"sv, "holds a FAT file system"},
    {82, "FAT32"sv, "holds a FAT file system"},
    {4086, "SWAPSPACE2"sv, "is a swap area"},
    {4086, "SWAP-SPACE"sv, "is a swap area"},
    {0, "LUKS\xba\xbe"sv, "holds a LUKS volume"},
    {0x18, "LVM2 001"sv, "is part of an LVM volume group"},
    {0x218, "LVM2 001"sv, "is part of an LVM volume group"},
    {0x1000, "\xfc\x4e\x2b\xa9"sv, "is part of a RAID array"},
    {0, "bluestore block device"sv, "belongs to a Ceph store"},
    {0x200, "EFI PART"sv, "holds a partition table"},
    {0x1fe, "\x55\xaa"sv, "holds a partition table or a boot sector"},
};

}  // namespace

Result<const char*> known_contents(int fd) noexcept {
  for (const Signature& signature : kSignatures) {
    char found[32] = {};
    const Result<std::size_t> got = sys::pread(fd, found, signature.bytes.size(), signature.offset);
    if (!got) return fail(got.error().code, got.error().sys, "cannot be read");
    if (*got == signature.bytes.size() && std::memcmp(found, signature.bytes.data(), *got) == 0) return signature.what;
  }
  return "";
}

}  // namespace whimbrel
