// Adoption: learns what memory the program has, has it watched, and counts what of it is resident.
//
// A scan walks the mappings and builds the region table anew, taking over what is still true of the old one; changes
// that are reported meanwhile put the result in doubt where they hit. Below half the limit nothing is watched: nothing
// could have to leave, and a program that stays there pays for nothing but the walks. Flags that only the slow query
// shows (locked, wiped on fork) are asked for before anything of a mapping is evicted, many at a time and not too
// often.
//
// Every walk may take a small share of one CPU: what it cost decides when the next one is due.
#pragma once

#include "pager/pager_core.h"

namespace whimbrel {

class Adoption {
 public:
  explicit Adoption(PagerCore& core) noexcept : core_(core), next_(core.space.source()) {}

  // Whether anything was new. `thorough`: the flags of everything are asked for now, whatever it costs.
  bool scan(bool thorough = false) noexcept;
  void recount() noexcept;
  // The program has just mapped `range`: has it watched before much of it is filled, without looking at anything else.
  // On any thread; never waits for a walk that is under way: false then, and for what a walk has to settle.
  bool adopt_now(PageRange range) noexcept;
  // Does what is due; returns the time at which something will be due again.
  [[nodiscard]] std::int64_t step() noexcept;
  void reset_in_child() noexcept;

 private:
  enum class Verify : std::uint8_t { kNew, kEverything };
  class Details;

  [[nodiscard]] std::int64_t now() const noexcept { return core_.space.clock().now_ns(); }
  bool scan_locked(Verify verify) noexcept REQUIRES(mutex_);
  void recount_locked() noexcept REQUIRES(mutex_);
  void add_mapping(const Mapping& mapping) noexcept REQUIRES(mutex_);
  void add_piece(const Mapping& mapping, PageRange piece) noexcept REQUIRES(mutex_);
  // Takes over what is known of the old regions in its place. True: all of it was watched before.
  bool inherit(Region& region) noexcept REQUIRES(mutex_);
  void watch(Region& region) noexcept REQUIRES(mutex_);
  [[nodiscard]] bool continues_watched(const Region& region) const noexcept REQUIRES(mutex_);
  [[nodiscard]] bool grown_behind(PageIndex end) noexcept REQUIRES(mutex_);
  // Counts the pages of a newly watched region that were touched before: those no old watched region covers.
  void count_unseen(const Region& region) noexcept REQUIRES(mutex_);
  void verify(Verify what) noexcept REQUIRES(mutex_);
  void apply_details(Region& region, const Mapping& mapping) noexcept REQUIRES(mutex_);
  // The whole mapping that begins there, as it is now.
  bool advise_mapping(PageIndex first) noexcept REQUIRES(mutex_);
  // Asks for huge pages where there is room for a stream of them, so that the kernel lets units be moved in whole.
  void advise_huge(Region& region, const Mapping& mapping) noexcept REQUIRES(mutex_);
  [[nodiscard]] bool install() noexcept REQUIRES(mutex_);
  [[nodiscard]] std::uint64_t count(PageRange range) noexcept REQUIRES(mutex_);
  void bring_home_unmanageable() noexcept REQUIRES(mutex_);
  [[nodiscard]] bool is_under_pressure() const noexcept;
  [[nodiscard]] std::int64_t pause_after_scan(bool changed, std::int64_t cost) noexcept REQUIRES(mutex_);
  [[nodiscard]] static std::int64_t after(std::int64_t cost, std::int64_t share) noexcept;

  PagerCore& core_;
  Mutex mutex_;  // one walk at a time. Before every other lock of the pager
  RegionTable next_ GUARDED_BY(mutex_);
  std::array<PageRun, 256> runs_ GUARDED_BY(mutex_){};
  std::array<Mapping, 512> details_ GUARDED_BY(mutex_){};
  RangeList<64> unmanageable_ GUARDED_BY(mutex_);  // became locked or wiped on fork: nothing of it may be away
  bool huge_refused_ GUARDED_BY(mutex_) = false;  // this kernel has none
  bool advice_is_inherited_ GUARDED_BY(mutex_) = false;  // in a forked child: what is advised may be by our parent
  bool something_new_ GUARDED_BY(mutex_) = false;
  bool memory_short_ GUARDED_BY(mutex_) = false;
  bool unverified_ GUARDED_BY(mutex_) = false;

  // When what is due.
  std::int64_t next_scan_ GUARDED_BY(mutex_) = 0;
  std::int64_t earliest_scan_ GUARDED_BY(mutex_) = 0;
  std::int64_t next_count_ GUARDED_BY(mutex_) = 0;
  std::int64_t next_verify_ GUARDED_BY(mutex_) = 0;
  std::int64_t next_refresh_ GUARDED_BY(mutex_) = 0;
  std::int64_t last_count_ GUARDED_BY(mutex_) = 0;
  std::int64_t pause_ GUARDED_BY(mutex_) = 0;
  std::int64_t verify_cost_ GUARDED_BY(mutex_) = 0;  // part of the last scan
};

}  // namespace whimbrel
