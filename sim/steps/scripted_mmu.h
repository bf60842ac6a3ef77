// ScriptedMmu: a simulated Mmu whose next move can be made to stop in the middle, and which lets a test look at the very
// moment of a move and remembers who was woken.
#pragma once

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "sim/sim_mmu.h"

namespace whimbrel::sim {

class ScriptedMmu final : public Mmu {
 public:
  explicit ScriptedMmu(SimMmu& inner) : inner_(inner) {}

  // The next move does so many pages and is then refused.
  void cut_next_move(PageCount done, Errc why) { cut_ = Cut{done, why}; }
  // Called before each move, with the engine's lock held as the engine holds it.
  void before_move(std::function<void(PageIndex to, PageIndex from)> look) { look_ = std::move(look); }
  // The next scans find what is there as if the kernel were moving it elsewhere.
  void move_in_scans(int scans) { moving_scans_ = scans; }
  [[nodiscard]] int scans() const { return scans_; }
  [[nodiscard]] int populated() const { return populated_; }
  // What is_shared() answers from now on.
  void set_shared(bool shared) { shared_ = shared; }
  [[nodiscard]] const std::vector<PageRange>& woken() const { return woken_; }
  void forget_woken() { woken_.clear(); }

  Progress move(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept override {
    if (look_) look_(to, from);
    if (!cut_) return inner_.move(to, from, count, wake);
    const Cut cut = *std::exchange(cut_, std::nullopt);
    if (cut.done.raw() != 0) {
      const Progress part = inner_.move(to, from, cut.done, wake);
      if (part.failed) return part;
    }
    return {cut.done, true, Error{cut.why, 0, "scripted"}};
  }
  void wake(PageRange range) noexcept override {
    woken_.push_back(range);
    inner_.wake(range);
  }
  Result<bool> is_shared(PageIndex page) noexcept override {
    if (inner_.space().slot(page).is_empty()) return fail(Errc::kNotFound, 0, "scripted");
    return shared_;
  }

  Result<Mapping> mapping_at_or_above(PageIndex page) noexcept override { return inner_.mapping_at_or_above(page); }
  Result<Mapping> detailed_mapping_at_or_above(PageIndex page) noexcept override {
    return inner_.detailed_mapping_at_or_above(page);
  }
  Result<std::size_t> scan(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept override {
    const Result<std::size_t> found = inner_.scan(range, out, scanned);
    ++scans_;
    if (moving_scans_ == 0) return found;
    --moving_scans_;
    for (PageRun& run : out.first(found.value_or(0))) {
      if ((run.kind & PageRun::kPresent) != 0) run.kind = PageRun::kSwapped;
    }
    return found;
  }
  Result<void> watch(PageRange range) noexcept override { return inner_.watch(range); }
  Result<void> unwatch(PageRange range) noexcept override { return inner_.unwatch(range); }
  Progress copy(PageIndex to, const std::byte* from, PageCount count, Wake wake, bool write_protected) noexcept override {
    return inner_.copy(to, from, count, wake, write_protected);
  }
  Progress zero(PageIndex to, PageCount count, Wake wake) noexcept override { return inner_.zero(to, count, wake); }
  Result<void> write_protect(PageRange range, bool protect, Wake wake) noexcept override {
    return inner_.write_protect(range, protect, wake);
  }
  Result<void> raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept override {
    return inner_.raise_bus_error(thread, address);
  }
  Result<void> poison(PageRange range) noexcept override { return inner_.poison(range); }
  Result<void> discard(PageRange range) noexcept override { return inner_.discard(range); }
  Result<void> discard_many(std::span<const PageRange> ranges) noexcept override { return inner_.discard_many(ranges); }
  Result<void> populate(PageRange range, bool write) noexcept override {
    ++populated_;
    return inner_.populate(range, write);
  }
  Result<PageRange> open_window(PageCount count, WindowKind kind) noexcept override { return inner_.open_window(count, kind); }
  void close_window(PageRange window) noexcept override { inner_.close_window(window); }
  std::byte* bytes(PageIndex page) noexcept override { return inner_.bytes(page); }
  Result<void> read_program(PageIndex page, std::byte* to) noexcept override { return inner_.read_program(page, to); }
  bool wait_for_message(std::int64_t nanoseconds) noexcept override { return inner_.wait_for_message(nanoseconds); }
  void interrupt() noexcept override { inner_.interrupt(); }
  std::size_t read_messages(std::span<Message> out) noexcept override { return inner_.read_messages(out); }
  Abilities abilities() const noexcept override { return inner_.abilities(); }

 private:
  struct Cut {
    PageCount done;
    Errc why;
  };
  SimMmu& inner_;
  std::optional<Cut> cut_;
  std::function<void(PageIndex, PageIndex)> look_;
  bool shared_ = false;
  int moving_scans_ = 0, scans_ = 0, populated_ = 0;
  std::vector<PageRange> woken_;
};

}  // namespace whimbrel::sim
