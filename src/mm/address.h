// Addresses, page indexes, page counts and frame numbers as types that do not mix.
//
// Only sensible arithmetic exists: index + count, index - index, pfn - pfn. raw() marks the exits to integers.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>

namespace whimbrel {

inline constexpr unsigned kPageShift = 12;
inline constexpr std::size_t kPageSize = std::size_t{1} << kPageShift;  // a base page, 4096 bytes
inline constexpr unsigned kHugeOrder = 9;
inline constexpr std::size_t kPagesPerHuge = std::size_t{1} << kHugeOrder;  // 512
inline constexpr std::size_t kHugeSize = kPageSize * kPagesPerHuge;         // 2 MiB
inline constexpr unsigned kUserAddressBits = 47;

// A number of base pages.
class PageCount {
 public:
  constexpr PageCount() = default;
  constexpr explicit PageCount(std::uint64_t n) : n_(n) {}
  [[nodiscard]] constexpr std::uint64_t raw() const { return n_; }
  [[nodiscard]] constexpr std::uint64_t bytes() const { return n_ << kPageShift; }
  [[nodiscard]] static constexpr PageCount from_bytes_rounded_up(std::uint64_t bytes) {
    return PageCount((bytes >> kPageShift) + ((bytes & (kPageSize - 1)) != 0 ? 1 : 0));
  }
  constexpr auto operator<=>(const PageCount&) const = default;
  constexpr PageCount operator+(PageCount o) const { return PageCount(n_ + o.n_); }
  constexpr PageCount operator-(PageCount o) const { return PageCount(n_ - o.n_); }
  constexpr PageCount& operator+=(PageCount o) { n_ += o.n_; return *this; }
  constexpr PageCount& operator-=(PageCount o) { n_ -= o.n_; return *this; }

 private:
  std::uint64_t n_ = 0;
};

// A byte address in a program's address space. Not necessarily mapped.
class VirtualAddress {
 public:
  constexpr VirtualAddress() = default;
  constexpr explicit VirtualAddress(std::uint64_t a) : a_(a) {}
  explicit VirtualAddress(const void* p) : a_(reinterpret_cast<std::uint64_t>(p)) {}
  [[nodiscard]] constexpr std::uint64_t raw() const { return a_; }
  [[nodiscard]] constexpr bool is_page_aligned() const { return (a_ & (kPageSize - 1)) == 0; }
  [[nodiscard]] constexpr bool is_huge_aligned() const { return (a_ & (kHugeSize - 1)) == 0; }
  constexpr auto operator<=>(const VirtualAddress&) const = default;
  constexpr VirtualAddress operator+(PageCount n) const { return VirtualAddress(a_ + n.bytes()); }

 private:
  std::uint64_t a_ = 0;
};

// The number of a virtual page: address >> 12.
class PageIndex {
 public:
  constexpr PageIndex() = default;
  constexpr explicit PageIndex(std::uint64_t i) : i_(i) {}
  [[nodiscard]] static constexpr PageIndex of(VirtualAddress a) { return PageIndex(a.raw() >> kPageShift); }
  [[nodiscard]] constexpr std::uint64_t raw() const { return i_; }
  [[nodiscard]] constexpr VirtualAddress address() const { return VirtualAddress(i_ << kPageShift); }
  [[nodiscard]] constexpr bool is_huge_aligned() const { return (i_ & (kPagesPerHuge - 1)) == 0; }
  [[nodiscard]] constexpr PageIndex huge_base() const { return PageIndex(i_ & ~std::uint64_t{kPagesPerHuge - 1}); }
  [[nodiscard]] constexpr std::uint64_t index_in_huge() const { return i_ & (kPagesPerHuge - 1); }
  constexpr auto operator<=>(const PageIndex&) const = default;
  constexpr PageIndex operator+(PageCount n) const { return PageIndex(i_ + n.raw()); }
  constexpr PageIndex operator-(PageCount n) const { return PageIndex(i_ - n.raw()); }
  constexpr PageCount operator-(PageIndex o) const { return PageCount(i_ - o.i_); }
  constexpr PageIndex& operator++() { ++i_; return *this; }

 private:
  std::uint64_t i_ = 0;
};

// Pages [first, first + count). May be empty.
struct PageRange {
  PageIndex first;
  PageCount count;
  [[nodiscard]] static constexpr PageRange between(PageIndex from, PageIndex to) {
    return {from, from < to ? to - from : PageCount(0)};
  }
  // The pages that [from, to) touches: from rounded down, to rounded up.
  [[nodiscard]] static constexpr PageRange touching(VirtualAddress from, VirtualAddress to) {
    return between(PageIndex::of(from), PageIndex((to.raw() + kPageSize - 1) >> kPageShift));
  }
  [[nodiscard]] constexpr PageIndex end() const { return first + count; }
  [[nodiscard]] constexpr bool empty() const { return count.raw() == 0; }
  [[nodiscard]] constexpr bool contains(PageIndex p) const { return first <= p && p < end(); }
  [[nodiscard]] constexpr bool contains(PageRange o) const { return first <= o.first && o.end() <= end(); }
  [[nodiscard]] constexpr bool overlaps(PageRange o) const { return first < o.end() && o.first < end(); }
  [[nodiscard]] constexpr PageRange intersect(PageRange o) const {
    return between(first < o.first ? o.first : first, end() < o.end() ? end() : o.end());
  }
  constexpr bool operator==(const PageRange&) const = default;
};

// Page frame number. A frame of RAM that the engine holds has the number of the address where its bytes can be read,
// shifted by 12; numbers of device-private pages start at kFirstDevicePfn, above every user address.
class Pfn {
 public:
  constexpr Pfn() = default;
  constexpr explicit Pfn(std::uint64_t n) : n_(n) {}
  [[nodiscard]] static constexpr Pfn of_frame(PageIndex staging) { return Pfn(staging.raw()); }
  [[nodiscard]] constexpr std::uint64_t raw() const { return n_; }
  [[nodiscard]] constexpr bool is_device() const;
  // The page of the engine's own memory that this RAM frame is. Only for frames, not for device pages.
  [[nodiscard]] constexpr PageIndex frame() const { return PageIndex(n_); }
  constexpr auto operator<=>(const Pfn&) const = default;
  constexpr Pfn operator+(PageCount n) const { return Pfn(n_ + n.raw()); }
  constexpr PageCount operator-(Pfn o) const { return PageCount(n_ - o.n_); }

 private:
  std::uint64_t n_ = 0;
};

inline constexpr Pfn kFirstDevicePfn{std::uint64_t{1} << (kUserAddressBits - kPageShift)};
inline constexpr unsigned kPfnBits = 48;  // largest number the page table can hold

constexpr bool Pfn::is_device() const { return *this >= kFirstDevicePfn; }

}  // namespace whimbrel
