#include "pager/budget.h"

#include <algorithm>

namespace whimbrel {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

std::uint64_t minus_or_zero(std::uint64_t a, std::uint64_t b) { return a > b ? a - b : 0; }

}  // namespace

BudgetSplit split_budget(const BudgetInputs& in) noexcept {
  BudgetSplit split;
  if (in.ram_bytes != 0) split.limit_pages = std::max(in.ram_bytes / kPageSize, kLeastResidentPages);
  if (in.total_bytes == 0) return split;
  const std::uint64_t others = in.store_bytes + in.staging_bytes + in.own_bytes;
  const std::uint64_t left = minus_or_zero(in.total_bytes, others) / kPageSize;
  // Everything that is resident now but for the least would have to be stored as well, at the ratio reached so far (1:1
  // before that).
  const std::uint64_t still_to_store = minus_or_zero(in.resident_pages, kLeastResidentPages);
  const std::uint64_t bytes_each = in.stored_pages == 0 ? kPageSize : in.store_bytes / in.stored_pages + 1;
  const std::uint64_t at_least = others + still_to_store * std::min(bytes_each, kPageSize) + kLeastResidentPages * kPageSize;
  std::uint64_t floor = kLeastResidentPages;
  // It will be exceeded whatever leaves. What does not shrink gains nothing by leaving, and a program with next to no
  // residents stands still.
  if (at_least > in.total_bytes) floor = std::max(floor, in.total_bytes / kPageSize / 8);
  split.limit_pages = std::min(split.limit_pages, std::max(left, floor));
  if (left >= floor) return split;
  split.fits = false;
  // A workable minimum of residents: four times the least, and a sixteenth of what there is.
  const std::uint64_t residents =
      std::max(4 * kLeastResidentPages, (in.resident_pages + in.stored_pages) / 16) * kPageSize;
  const std::uint64_t bytes = at_least - kLeastResidentPages * kPageSize + residents;
  split.would_do_bytes = (bytes + kMiB - 1) / kMiB * kMiB;
  return split;
}

std::uint64_t reserve_under(std::uint64_t limit_pages) noexcept {
  if (limit_pages == kNoLimit) return 0;
  return std::clamp<std::uint64_t>(limit_pages / 64, 64, 4096);
}

}  // namespace whimbrel
