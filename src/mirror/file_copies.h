// FileCopies: pages of private file mappings that were copied on write.
//
// The kernel moves such a page like any other anonymous one; UFFDIO_MOVE refuses the whole mapping because of its file.
// So before a command moves such copies, they get a mapping of their own, anonymous, in the same place: nothing but a
// listing of the mappings shows it. What is not a copy stays the file's. When the program drops a copy (MADV_DONTNEED),
// the file appears again, as it does in the kernel.
#pragma once

#include <array>
#include <cstdint>

#include "base/mutex.h"
#include "migrate/address_space.h"

namespace whimbrel::mirror {

class FileCopies {
 public:
  // Copies in the range become movable, where this process may have the files of its mappings opened again and no other
  // thread of the program could write meanwhile. Others stay as they are, in place and not movable.
  void take(AddressSpace& space, PageRange range) noexcept EXCLUDES(mutex_);
  // The program has dropped what is in the range: where a copy had been taken, the file is mapped again.
  void give_back(AddressSpace& space, PageRange range) noexcept EXCLUDES(mutex_);
  [[nodiscard]] bool overlaps(PageRange range) noexcept EXCLUDES(mutex_);
  void unmapped(PageRange range) noexcept EXCLUDES(mutex_);
  [[nodiscard]] bool owns_descriptor(int fd) const noexcept;
  void reset_after_fork() noexcept { mutex_.reset_after_fork(); }

  struct Copy {
    PageRange range;  // empty: free
    std::uint64_t offset = 0;
    std::uint64_t inode = 0;
    int file = -1;
  };
  static constexpr std::size_t kCopies = 128;
  struct Lifted {
    std::array<Copy, 8> copies;
    std::size_t count = 0;
  };
  // mremap: what is known of a range goes along. lift() before the call, drop() after it with the range's new place.
  [[nodiscard]] Lifted lift(PageRange range) noexcept EXCLUDES(mutex_);
  void drop(const Lifted& lifted, PageRange from, PageIndex to) noexcept EXCLUDES(mutex_);

 private:
  [[nodiscard]] bool take_run(AddressSpace& space, PageRange run, const Mapping& mapping) noexcept EXCLUDES(mutex_);
  // The file at this place of the mapping, by a descriptor of ours; -1: not to be had.
  [[nodiscard]] int file_of(const Mapping& mapping) noexcept REQUIRES(mutex_);
  [[nodiscard]] bool add_locked(Copy copy) noexcept REQUIRES(mutex_);
  void cut_locked(PageRange range) noexcept REQUIRES(mutex_);

  struct File {
    std::uint64_t inode = 0;
    std::uint64_t device = 0;
    std::atomic<int> descriptor{-1};
  };
  Mutex mutex_;
  std::array<Copy, kCopies> copies_ GUARDED_BY(mutex_){};
  std::array<File, 32> files_;  // never closed: each file once
};

}  // namespace whimbrel::mirror
