// The kernel descriptors the engine works with, in one place, so that they can be rebuilt after a fork.
//
// Whose table they live in decides who may close them: the engine's own table (nobody but the engine), or the
// program's, at numbers high up that programs rarely touch (needed when program threads call the engine directly).
#pragma once

#include <cstdint>

#include "base/error.h"
#include "linux/userfault.h"

namespace whimbrel {

enum class Visibility : std::uint8_t {
  kPrivate,  // opened by a thread with a descriptor table of its own; usable by the threads that share that table
  kShared,   // in the program's table, usable by every thread, moved to high numbers
};

class Descriptors {
 public:
  enum Which : std::uint8_t {
    kUserfault,
    kMaps,     // /proc/…/maps: mappings
    kPagemap,  // /proc/…/pagemap: presence; may be missing, presence is then asked page by page (mincore)
    kMemory,   // /proc/…/mem: reading pages of the program; may be missing
    kProcess,  // this process; may be missing
    kBell,     // eventfd that ends a wait; may be missing
    kSmaps,    // /proc/…/smaps: flags of mappings, for when the program has left /proc behind; may be missing
    kCount,
  };

  // The number, or -1 when it is not open.
  [[nodiscard]] int operator[](Which which) const noexcept { return numbers_[which]; }
  [[nodiscard]] bool has(Which which) const noexcept { return numbers_[which] >= 0; }

  // Opens everything but the userfaultfd itself, which is handed in and belongs to this object from then on (it is
  // closed on failure). Missing extras are no failure; a missing kMaps is. Only on an object with nothing open.
  [[nodiscard]] Result<void> open(int userfault, Visibility visibility) noexcept;
  void close() noexcept;
  // In a forked child. Private: the numbers meant nothing in this table and are forgotten. Shared: those that still are
  // what the parent opened are closed, for whoever uses the inherited userfaultfd acts on the parent.
  void forget_inherited(Visibility visibility) noexcept;

  // The lowest and one past the highest number in use; {0, 0} when none is open.
  struct Span {
    int first;
    int end;
  };
  [[nodiscard]] Span span() const noexcept;

 private:
  // Of the open file behind a number, to recognise one that the program has closed and used again.
  struct Identity {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    bool operator==(const Identity&) const = default;
  };
  [[nodiscard]] static Identity identity(int fd) noexcept;
  void adopt(Which which, Result<int> opened, int lowest) noexcept;

  int numbers_[kCount] = {-1, -1, -1, -1, -1, -1, -1};
  Identity identities_[kCount] = {};
};

// Room for a handful of descriptors where the program runs with next to none: raises the soft limit of open files for
// its own lifetime. The limit is the whole process's, so this is held only while descriptors are opened.
class DescriptorRoom {
 public:
  // Room in a table that holds nothing yet.
  DescriptorRoom() noexcept;
  // Room for so many more, however many there are.
  explicit DescriptorRoom(std::uint64_t more) noexcept;
  ~DescriptorRoom();
  DescriptorRoom(const DescriptorRoom&) = delete;
  DescriptorRoom& operator=(const DescriptorRoom&) = delete;

 private:
  bool changed_ = false;
  std::uint64_t soft_ = 0;
  std::uint64_t hard_ = 0;
};

}  // namespace whimbrel
