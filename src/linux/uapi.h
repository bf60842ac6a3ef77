// The parts of the kernel's user interface that older distribution headers lack, under names of our own so that they
// do not collide with newer headers. Layouts and numbers are the kernel's published ABI; which of them the running
// kernel really offers is found out by trying (probe.h).
#pragma once

#include <linux/ioctl.h>
#include <linux/userfaultfd.h>

#include <cstdint>

namespace whimbrel::uapi {

// ---- userfaultfd features and calls newer than Linux 6.1 headers -----------------------------------------------
inline constexpr std::uint64_t kFeaturePagefaultWp = 1u << 0;
inline constexpr std::uint64_t kFeatureEventFork = 1u << 1;
inline constexpr std::uint64_t kFeatureEventRemap = 1u << 2;
inline constexpr std::uint64_t kFeatureEventRemove = 1u << 3;
inline constexpr std::uint64_t kFeatureEventUnmap = 1u << 6;
inline constexpr std::uint64_t kFeatureSigbus = 1u << 7;
inline constexpr std::uint64_t kFeatureThreadId = 1u << 8;
inline constexpr std::uint64_t kFeatureExactAddress = 1u << 11;
inline constexpr std::uint64_t kFeatureWpUnpopulated = 1u << 13;
inline constexpr std::uint64_t kFeaturePoison = 1u << 14;
inline constexpr std::uint64_t kFeatureWpAsync = 1u << 15;
inline constexpr std::uint64_t kFeatureMove = 1u << 16;

struct UffdioMove {
  std::uint64_t dst, src, len, mode;
  std::int64_t move;  // out: bytes moved, or -errno of the first page
};
inline constexpr std::uint64_t kMoveDontWake = 1u << 0;
inline constexpr std::uint64_t kMoveAllowSrcHoles = 1u << 1;
inline constexpr unsigned long kUffdioMove = _IOWR(0xAA, 0x05, UffdioMove);

struct UffdioPoison {
  uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;
};
inline constexpr std::uint64_t kPoisonDontWake = 1u << 0;
inline constexpr unsigned long kUffdioPoison = _IOWR(0xAA, 0x08, UffdioPoison);

inline constexpr int kUffdUserModeOnly = 1;
inline constexpr unsigned long kDevUserfaultfdNew = _IO(0xAA, 0x00);

// ---- PAGEMAP_SCAN (Linux 6.7) ------------------------------------------------------------------------------------
struct PageRegion {
  std::uint64_t start, end, categories;
};
struct PagemapScan {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScan);
enum Category : std::uint64_t {
  kPageWpAllowed = 1u << 0,
  kPageWritten = 1u << 1,
  kPageFile = 1u << 2,
  kPagePresent = 1u << 3,
  kPageSwapped = 1u << 4,
  kPagePfnZero = 1u << 5,
  kPageHuge = 1u << 6,
  kPageSoftDirty = 1u << 7,
  kPageGuard = 1u << 8,  // Linux 6.15
};
inline constexpr std::uint64_t kScanWpMatching = 1u << 0;
inline constexpr std::uint64_t kScanCheckWpAsync = 1u << 1;

// Bits of one /proc/PID/pagemap word.
inline constexpr std::uint64_t kWordExclusive = std::uint64_t{1} << 56;  // mapped once
inline constexpr std::uint64_t kWordUffdWp = std::uint64_t{1} << 57;
inline constexpr std::uint64_t kWordGuard = std::uint64_t{1} << 58;
inline constexpr std::uint64_t kWordFile = std::uint64_t{1} << 61;
inline constexpr std::uint64_t kWordSwapped = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kWordPresent = std::uint64_t{1} << 63;

// ---- PROCMAP_QUERY (Linux 6.11) ----------------------------------------------------------------------------------
struct ProcmapQuery {
  std::uint64_t size;
  std::uint64_t query_flags;
  std::uint64_t query_addr;
  std::uint64_t vma_start;
  std::uint64_t vma_end;
  std::uint64_t vma_flags;
  std::uint64_t vma_page_size;
  std::uint64_t vma_offset;
  std::uint64_t inode;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint32_t vma_name_size;  // in: room; out: length with the final zero, 0 when there is none
  std::uint32_t build_id_size;
  std::uint64_t vma_name_addr;
  std::uint64_t build_id_addr;
};
inline constexpr unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);
enum ProcmapFlag : std::uint64_t {
  kVmaReadable = 0x01,
  kVmaWritable = 0x02,
  kVmaExecutable = 0x04,
  kVmaShared = 0x08,
  kCoveringOrNextVma = 0x10,
  kFileBackedVma = 0x20,
};

// ---- madvise -----------------------------------------------------------------------------------------------------
inline constexpr int kMadvPopulateRead = 22;
inline constexpr int kMadvPopulateWrite = 23;
inline constexpr int kMadvCollapse = 25;
inline constexpr int kMadvGuardInstall = 102;
inline constexpr int kMadvGuardRemove = 103;

static_assert(sizeof(PagemapScan) == 96 && sizeof(ProcmapQuery) == 104 && sizeof(UffdioMove) == 40);

}  // namespace whimbrel::uapi
