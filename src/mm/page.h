// Page: the engine's 16 bytes about one frame: a device page, or a frame of RAM that the engine holds.
//
// Lock, references and order belong to the folio and live in its head page (section "Folio" below); the reverse mapping
// is each page's own. A process has one address space and every page at most one slot in it, so the reverse map is one
// page index.
//
// Reference rules (DM-17): one reference per slot that maps the page, one per holder. A page is born locked with one
// reference. The holder that drops the last one frees it.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/check.h"
#include "mm/address.h"

namespace whimbrel {

class Page {
 public:
  // ---- lock: a bit, taken by trylock in range order, so concurrent migrations cannot deadlock (LK-01) ----
  [[nodiscard]] bool try_lock() noexcept { return (flags_.fetch_or(kLocked, std::memory_order_acquire) & kLocked) == 0; }
  void unlock() noexcept {
    const std::uint32_t old = flags_.fetch_and(~kLocked, std::memory_order_release);
    CHECK((old & kLocked) != 0, "unlocking a page that is not locked");
  }
  [[nodiscard]] bool is_locked() const noexcept { return (flags_.load(std::memory_order_acquire) & kLocked) != 0; }

  // ---- references, in the folio's head page ----
  [[nodiscard]] std::uint32_t refs() const noexcept { return refs_.load(std::memory_order_acquire); }
  void get() noexcept {
    const std::uint32_t old = refs_.fetch_add(1, std::memory_order_relaxed);
    CHECK(old != 0, "reference to a free page");
  }
  // False when the page is free.
  [[nodiscard]] bool try_get() noexcept {
    std::uint32_t n = refs_.load(std::memory_order_relaxed);
    while (n != 0 && !refs_.compare_exchange_weak(n, n + 1, std::memory_order_acquire)) {
    }
    return n != 0;
  }
  // True: that was the last one; the caller frees the folio.
  [[nodiscard]] bool put() noexcept {
    const std::uint32_t old = refs_.fetch_sub(1, std::memory_order_acq_rel);
    CHECK(old != 0, "reference count below zero");
    return old == 1;
  }

  // ---- folio shape ----
  [[nodiscard]] bool is_tail() const noexcept { return (flags_.load(std::memory_order_acquire) & kTail) != 0; }
  [[nodiscard]] unsigned order() const noexcept { return (flags_.load(std::memory_order_acquire) >> kOrderShift) & 15; }
  // Makes a free page the head of a fresh folio (locked, one reference) or one of its tails (DM-13).
  void init_head(unsigned order) noexcept {
    CHECK(refs() == 0, "initialising a page in use");
    mapping_.store(0, std::memory_order_relaxed);
    flags_.store(kLocked | kAllocated | (order << kOrderShift), std::memory_order_relaxed);
    refs_.store(1, std::memory_order_release);
  }
  void init_tail() noexcept {
    CHECK(refs() == 0, "initialising a page in use");
    mapping_.store(0, std::memory_order_relaxed);
    flags_.store(kTail, std::memory_order_release);
  }
  // Splitting: a tail becomes a folio of its own with `refs` references, locked or not; the head becomes order 0.
  void split_off(std::uint32_t refs, bool locked) noexcept {
    const std::uint32_t kept = flags_.load(std::memory_order_relaxed) & ~kOwnFlags;
    flags_.store(kept | kAllocated | (locked ? kLocked : 0u), std::memory_order_relaxed);
    refs_.store(refs, std::memory_order_release);
  }
  void become_order_0() noexcept { flags_.fetch_and(~(15u << kOrderShift), std::memory_order_acq_rel); }

  // ---- whether its owner has it: a head's, from init_head() until the owner has taken the folio back and says so. A page
  // without references may be on its way there; in a forked child nobody brings it any more. ----
  [[nodiscard]] bool is_allocated() const noexcept { return (flags_.load(std::memory_order_acquire) & kAllocated) != 0; }
  void mark_free() noexcept { flags_.fetch_and(~kAllocated, std::memory_order_acq_rel); }

  // ---- 16 bits of the page's owner, about an allocated folio: its head's, kept until the folio is made anew ----
  [[nodiscard]] std::uint16_t owner_bits() const noexcept {
    return static_cast<std::uint16_t>(flags_.load(std::memory_order_acquire) >> kOwnerShift);
  }
  void set_owner_bits(std::uint16_t bits) noexcept {
    std::uint32_t old = flags_.load(std::memory_order_relaxed);
    while (!flags_.compare_exchange_weak(old, (old & kOwnFlags) | (std::uint32_t{bits} << kOwnerShift),
                                         std::memory_order_acq_rel)) {
    }
  }

  // In a forked child: locks and references of the parent's threads are void. First every head is reset, then each slot
  // that maps the folio gives it its reference again.
  void reset_after_fork(unsigned order, std::uint32_t refs) noexcept {
    const std::uint32_t kept = flags_.load(std::memory_order_relaxed) & (~kOwnFlags | kAllocated);
    flags_.store(kept | (order << kOrderShift), std::memory_order_relaxed);
    refs_.store(refs, std::memory_order_relaxed);
  }
  void adopt_mapping() noexcept { refs_.fetch_add(1, std::memory_order_relaxed); }

  // ---- reverse mapping: the slot that maps (or, while migrating, will map) this page ----
  [[nodiscard]] bool is_mapped() const noexcept { return mapping_.load(std::memory_order_acquire) != 0; }
  [[nodiscard]] PageIndex mapped_at() const noexcept { return PageIndex(mapping_.load(std::memory_order_acquire) >> 1); }
  void set_mapping(PageIndex at) noexcept { mapping_.store((at.raw() << 1) | 1, std::memory_order_release); }
  void clear_mapping() noexcept { mapping_.store(0, std::memory_order_release); }

 private:
  static constexpr std::uint32_t kLocked = 1u << 0;
  static constexpr std::uint32_t kTail = 1u << 1;
  static constexpr std::uint32_t kAllocated = 1u << 2;
  static constexpr unsigned kOrderShift = 4;
  static constexpr unsigned kOwnerShift = 16;
  static constexpr std::uint32_t kOwnFlags = (std::uint32_t{1} << kOwnerShift) - 1;

  std::atomic<std::uint32_t> refs_{0};
  std::atomic<std::uint32_t> flags_{0};
  std::atomic<std::uint64_t> mapping_{0};
};

static_assert(sizeof(Page) == 16);  // metadata per device page is a promise

}  // namespace whimbrel
