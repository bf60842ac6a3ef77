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
  if (left >= kLeastResidentPages) {
    split.limit_pages = std::min(split.limit_pages, left);
    return split;
  }
  split.limit_pages = std::min(split.limit_pages, kLeastResidentPages);
  split.fits = false;
  // Everything that is resident now would have to be stored as well, at the ratio reached so far (1:1 before that).
  const std::uint64_t still_to_store = minus_or_zero(in.resident_pages, split.limit_pages);
  const std::uint64_t bytes_each = in.stored_pages == 0 ? kPageSize : in.store_bytes / in.stored_pages + 1;
  // A workable minimum of residents: four times the least, and a sixteenth of what there is.
  const std::uint64_t residents =
      std::max(4 * kLeastResidentPages, (in.resident_pages + in.stored_pages) / 16) * kPageSize;
  const std::uint64_t bytes = others + still_to_store * std::min(bytes_each, kPageSize) + residents;
  split.would_do_bytes = (bytes + kMiB - 1) / kMiB * kMiB;
  return split;
}

std::uint64_t reserve_under(std::uint64_t limit_pages) noexcept {
  if (limit_pages == kNoLimit) return 0;
  return std::clamp<std::uint64_t>(limit_pages / 64, 64, 4096);
}

}  // namespace whimbrel
