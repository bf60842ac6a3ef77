// MappingNews: tells at once that the program has made a mapping (mmap, growth of the heap), and where. The userfault
// descriptor tells nothing of new memory, and a walk over all mappings every few milliseconds lets a fast program fill
// megabytes that nobody watches; this is what the walks are for where the kernel does not permit it.
//
// By perf_event_open(2): a software event that counts nothing, with data mappings recorded (attr.mmap, attr.mmap_data),
// one for each thread and processor, inherited by threads that come later. The records of one processor share a ring of
// two pages. Not reported: mappings that grow in place by mremap(), and what the reader was too slow for (take() says
// so).
//
// Not thread-safe: one thread opens and takes. In a forked child: forget(), then open() anew; the rings are not
// inherited.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "mm/address.h"

namespace whimbrel {

class MappingNews {
 public:
  MappingNews() = default;
  MappingNews(const MappingNews&) = delete;
  MappingNews& operator=(const MappingNews&) = delete;
  ~MappingNews() { close(); }

  // Starts reporting for every thread of this process, the calling one left out or not. Errors: kNotPermitted
  // (perf_event_paranoid above 2, a container's filter), kNotSupported (no perf events, more threads or processors than
  // are worth it).
  enum class Caller : std::uint8_t { kLeftOut, kToo };
  [[nodiscard]] Result<void> open(Caller caller = Caller::kLeftOut) noexcept;
  void close() noexcept;
  // The descriptors are another process's: leaves them alone.
  void forget() noexcept;

  // Becomes readable when there is something to take; -1: not open.
  [[nodiscard]] int descriptor() const noexcept { return epoll_; }
  // Costs a look at memory, no system call.
  [[nodiscard]] bool any() const noexcept;
  // Takes up to out.size() new mappings, in no particular order. `*incomplete`: there were more than could be told.
  [[nodiscard]] std::size_t take(std::span<PageRange> out, bool* incomplete) noexcept;

 private:
  static constexpr std::size_t kMostProcessors = 64;
  static constexpr std::size_t kMostDescriptors = 256;
  static constexpr std::size_t kDataBytes = 4096;
  struct Ring {
    std::byte* pages = nullptr;  // the kernel's header page, then kDataBytes of records
    int event = -1;              // the first event of this processor: it owns the ring
  };

  [[nodiscard]] Result<void> open_all_threads(int but) noexcept;
  [[nodiscard]] Result<void> open_thread(int thread) noexcept;
  [[nodiscard]] Result<void> make_ring(Ring& ring, int event) noexcept;
  [[nodiscard]] bool knows(int thread) const noexcept;
  // Records of one ring.
  std::size_t drain(Ring& ring, std::span<PageRange> out, bool* incomplete) noexcept;

  std::array<Ring, kMostProcessors> rings_{};
  std::size_t processors_ = 0;
  std::array<int, kMostDescriptors> events_{};
  std::size_t event_count_ = 0;
  std::array<int, kMostDescriptors> threads_{};
  std::size_t thread_count_ = 0;
  int epoll_ = -1;
};

}  // namespace whimbrel
