// SimProgram: the program whose memory is migrated. Its threads are fibers; each call is what a thread of the real
// program does, including the waits: a touch of a watched empty slot parks the thread until somebody wakes it, and a
// change of watched memory parks it until the engine has read about it.
//
// Every read is compared with the Model, to which each change is applied in the very step in which the simulated kernel
// applies it. What differs is kept in violations().
#pragma once

#include <string>
#include <vector>

#include "sim/model.h"
#include "sim/sim_mmu.h"

namespace whimbrel::sim {

class SimProgram {
 public:
  explicit SimProgram(SimMmu& mmu) : mmu_(mmu) {}

  // ---- accesses: aligned 8-byte words. `thread` is what messages will say. ------------------------------------
  Access read(std::uint32_t thread, VirtualAddress address, std::uint64_t* word);
  Access write(std::uint32_t thread, VirtualAddress address, std::uint64_t word);

  // ---- system calls -------------------------------------------------------------------------------------------
  // Private anonymous memory; `attributes` as in Vma. What was mapped there before is unmapped first (MAP_FIXED).
  void mmap(PageRange range, std::uint32_t attributes = Mapping::kReadable | Mapping::kWritable);
  void munmap(PageRange range);
  [[nodiscard]] Result<void> mprotect(PageRange range, std::uint32_t protection);
  // Moves a part of one mapping; the destination is unmapped first. keep_source: MREMAP_DONTUNMAP.
  [[nodiscard]] Result<void> mremap(PageRange from, PageIndex to, bool keep_source = false);
  [[nodiscard]] Result<void> grow(PageIndex mapping, PageCount to);
  [[nodiscard]] Result<void> dontneed(PageRange range);
  [[nodiscard]] Result<void> free_lazily(PageRange range);
  // Sets and clears attributes (MADV_HUGEPAGE, MADV_DONTFORK, ...).
  [[nodiscard]] Result<void> advise(PageRange range, std::uint32_t set, std::uint32_t clear);
  // mlock: everything is touched first.
  [[nodiscard]] Result<void> mlock(std::uint32_t thread, PageRange range);
  [[nodiscard]] Result<void> munlock(PageRange range) { return advise(range, 0, Mapping::kLocked); }

  [[nodiscard]] Model& model() { return model_; }
  [[nodiscard]] SimMmu& mmu() { return mmu_; }
  [[nodiscard]] const std::vector<std::string>& violations() const { return violations_; }
  // Threads that SIGBUS may legally meet: a device has declared contents lost.
  void tolerate_bus_errors() { bus_is_legal_ = true; }

 private:
  Access touch(std::uint32_t thread, VirtualAddress address, bool write);
  void report(const char* what, VirtualAddress address, const std::string& detail);
  void begin_change(PageRange range);
  void publish_and_wait(SimUserfault::Ticket change, const Message& event);
  void unmap_step(PageRange range);

  SimMmu& mmu_;
  Model model_;
  bool bus_is_legal_ = false;
  // Sources of mremap calls that have not returned. Other threads leave them alone until then: a program that changes a
  // range while it is being moved away races with itself, and no order of its messages would tell what it meant.
  std::vector<PageRange> moving_;
  std::vector<std::string> violations_;
};

}  // namespace whimbrel::sim
