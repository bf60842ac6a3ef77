// HintQueue: how threads of the program ask the engine to do something with named pages: migrate, fetch, pin, look.
//
// A thread of the program may not do it itself: it could need a page that is away while it holds an engine lock, and
// the engine's descriptors are not in its table. So it leaves an order in engine memory; the background thread works it
// off in slices of some milliseconds at most, several orders in turns, so that a long one holds up neither the others
// nor eviction.
//
// Life of an order: submit() → queued → worked on in slices → done → take() or forget(). One that was forgotten is
// freed when it is done. A forked child has none of its parent's orders.
//
// Threads: submit, wait, is_done and forget on any thread of the program, at any time; run_slice on the background
// thread.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/mutex.h"
#include "mm/address.h"
#include "pager/pager.h"

namespace whimbrel {

enum class HintKind : std::uint8_t {
  kManage,    // from now on the range is managed
  kUnmanage,  // comes home and is left to the kernel
  kEvict,     // to the device
  kFetch,     // home, as far as the budget lets it
  kPin,       // home, and stays
  kUnpin,
  kNormal,  // access patterns
  kSequential,
  kRandom,
  kCold,
  kDiscarded,  // the program has discarded it
  kReport,     // PageReport bits, of at most kReportPages pages
};

struct HintResult {
  // What became of the pages of the range, as it was seen once each.
  std::uint64_t moved = 0;
  std::uint64_t already = 0;  // were where they were wanted
  std::uint64_t empty = 0;    // nothing has been written there
  std::uint64_t refused = 0;
  // Why pages were refused: a set of these.
  static constexpr std::uint32_t kPinned = 1u << 0, kBusy = 1u << 1, kDeviceFull = 1u << 2, kOverBudget = 1u << 3,
                                 kNotManaged = 1u << 4, kDeviceFailed = 1u << 5;
  std::uint32_t reasons = 0;
  bool failed = false;  // the order as a whole, for what `error` says
  Error error{};
};

class HintQueue {
 public:
  static constexpr std::size_t kReportPages = 512;

  // Names an order. Never 0.
  using Ticket = std::uint64_t;

  // Waits while too many orders are under way. `kept`: the order may be left undone or untaken for as long as its owner
  // likes, so there are few of these. kAgain: too many kept ones. kGone: the engine has stopped.
  static constexpr std::size_t kMostKept = 48;
  [[nodiscard]] Result<Ticket> submit(HintKind kind, PageRange range, bool kept = false) noexcept EXCLUDES(mutex_);
  // Until it is done, at most `nanoseconds` (negative: no limit); then the order is gone. `report`: receives the bits.
  // kAgain: not done yet. kGone: the engine has stopped, or the order was made before a fork and this is the child.
  [[nodiscard]] Result<HintResult> wait(Ticket ticket, std::int64_t nanoseconds,
                                        std::span<std::uint32_t> report = {}) noexcept EXCLUDES(mutex_);
  [[nodiscard]] bool is_done(Ticket ticket) noexcept EXCLUDES(mutex_);
  // Nobody will ask for it; it is carried out all the same.
  void forget(Ticket ticket) noexcept EXCLUDES(mutex_);

  // The engine ends or has ended: nobody may wait any more.
  void close() noexcept EXCLUDES(mutex_);
  // Advanced when there is something to do.
  void wakes(Event* event) noexcept { wake_ = event; }

  // ---- background thread ----
  enum class More : std::uint8_t { kNothing, kAtOnce, kLater };
  More run_slice(Pager& pager) noexcept EXCLUDES(mutex_);

  void reset_in_child() noexcept;

 private:
  static constexpr std::size_t kOrders = 64;
  enum class State : std::uint32_t { kFree, kQueued, kDone };
  enum class Step : std::uint8_t { kFinished, kMore, kLater };

  struct Order {
    std::atomic<State> state{State::kFree};
    std::uint32_t generation = 0;  // GUARDED_BY(mutex_)
    bool forgotten = false;        // GUARDED_BY(mutex_)
    bool kept = false;             // GUARDED_BY(mutex_)
    // The background thread's from submit() until it is done.
    HintKind kind = HintKind::kReport;
    bool pinned = false;  // kPin: the range is in the pin table
    PageRange range, rest;
    std::uint64_t slice_moved = 0;  // of a slice that is tried again: a fork was in between, or the kernel had a page
    std::uint32_t slice_tries = 0;
    HintResult result;
    std::array<std::uint32_t, kReportPages> report{};
    Event done;
  };

  [[nodiscard]] Order* find_locked(Ticket ticket) noexcept REQUIRES(mutex_);
  void finish(Order& order) noexcept EXCLUDES(mutex_);

  // One slice each (hint_work.cc).
  [[nodiscard]] Step work(Order& order, Pager& pager) noexcept;
  [[nodiscard]] Step evict(Order& order, Pager& pager) noexcept;
  [[nodiscard]] Step fetch(Order& order, Pager& pager) noexcept;
  [[nodiscard]] Step pin(Order& order, Pager& pager) noexcept;
  [[nodiscard]] static Step settle(Order& order, const Result<void>& done) noexcept;
  // Room for `pages` under the limit, and for what else has to be there. False: there is none.
  [[nodiscard]] static bool make_room(Pager& pager, std::uint64_t pages) noexcept;
  struct Counts {
    std::uint64_t resident = 0, away = 0, empty = 0, pinned = 0, unmanaged = 0;
  };
  [[nodiscard]] Counts look(Pager& pager, PageRange part) noexcept;

  Event* wake_ = nullptr;
  std::atomic<bool> closed_{false};
  std::array<Order, kOrders> orders_{};
  std::array<std::uint32_t, HintQueue::kReportPages> seen_{};  // background thread: what look() saw
  std::uint64_t pinned_pages_ = 0;                             // background thread: by orders

  Mutex mutex_;  // a leaf; engine threads but the background one never take it
  Event freed_;
  std::array<std::uint8_t, kOrders> waiting_ GUARDED_BY(mutex_){};  // ring of orders to work on
  std::size_t head_ GUARDED_BY(mutex_) = 0;
  std::size_t count_ GUARDED_BY(mutex_) = 0;
};

}  // namespace whimbrel
