// Installing frames into the program: the one place where bytes become visible again. Internal to finalize.
#pragma once

#include "migrate/migrate_vma.h"

namespace whimbrel {

class Installer {
 public:
  // `read_only`: the mapping forbids writing, whatever it says at this moment. Nobody is woken then: who has lifted the
  // protection does it once it is back, lest a toucher finds the mapping writable.
  explicit Installer(AddressSpace& space, bool read_only = false) noexcept : space_(space), read_only_(read_only) {}
  // For the analysis, which does not see that both speak of the same lock: the caller holds it.
  void lock_is_held() const noexcept ASSERT_CAPABILITY(space_.mutex()) {}

  // Installs base pages src[at..end) from consecutive frames starting at `frame`, as many as lie next to each other in
  // the program; returns how many entries were dealt with (>= 1). `stolen` : the frames are the program's own, taken by
  // setup (MOVE them back); otherwise buffers (COPY). Slots dropped meanwhile are left alone. A slot whose page came from
  // a device and cannot be installed for lack of memory says "device" again.
  // `tag`: the first of as many pages of a coherent device, whose frames these are: the slots say so afterwards.
  std::uint64_t run_locked(const MigrateWord* src, std::uint64_t at, std::uint64_t end, Pfn frame, bool stolen,
                           Pfn tag = Pfn()) noexcept
      REQUIRES(space_.mutex());

  // Installs one 2 MiB unit: MOVE of the whole unit, and page by page where that is refused or the slot was split.
  void huge_locked(Pfn source, Pfn frame) noexcept REQUIRES(space_.mutex());

 private:
  // The slots [first, first+n) stand for source pages that belong to frames [frame, ...). Installs them all, or gives
  // back to the device what cannot be.
  void install_slots_locked(PageIndex first, std::uint64_t n, Pfn frame, bool by_move, Pfn tag = Pfn()) noexcept
      REQUIRES(space_.mutex());
  // One attempt; how many pages are in place, and whoever waited for them told. `protect`: they arrive read-only.
  [[nodiscard]] Progress put_locked(PageIndex first, std::uint64_t n, Pfn frame, bool by_move, bool protect) noexcept
      REQUIRES(space_.mutex());
  // The slot is of the readable flavour, and nothing but write protection would keep it so (RMP-01).
  [[nodiscard]] bool must_protect_locked(PageIndex at) noexcept REQUIRES(space_.mutex());
  // The slot is usable again: the entry goes, or becomes that of a coherent page; the source loses its mapping.
  void clear_slot_locked(PageIndex at, Pfn tag = Pfn()) noexcept REQUIRES(space_.mutex());
  void note_replaced_locked(PageIndex at) noexcept REQUIRES(space_.mutex());
  // What to do about one page that was refused. True: the slot is settled one way or the other.
  [[nodiscard]] bool settle_refused_locked(PageIndex at, Pfn frame, const Error& error, int tries, Pfn tag) noexcept
      REQUIRES(space_.mutex());
  // The slot stands for `source` and is still frozen.
  [[nodiscard]] bool is_ours_locked(Pfn source, PageIndex at) noexcept REQUIRES(space_.mutex());

  AddressSpace& space_;
  const bool read_only_;
};

}  // namespace whimbrel
