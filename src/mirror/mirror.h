// Mirror: one open of a node: its device page table, its flags, its subscription to the whole address space
// (ABI-10..ABI-13), and the commands.
#pragma once

#include "migrate/interval_notifier.h"
#include "migrate/range_fault.h"
#include "mirror/mirror_abi.h"
#include "mirror/node.h"
#include "mm/page_table.h"

namespace whimbrel::mirror {

class Session;

// The command's buffer in whatever process called. Offsets are bytes from the command's `ptr`. False: EFAULT.
class CallerBuffer {
 public:
  virtual ~CallerBuffer() = default;
  [[nodiscard]] virtual bool put(std::uint64_t offset, const std::byte* from, std::size_t bytes) noexcept = 0;
  [[nodiscard]] virtual bool get(std::uint64_t offset, std::byte* to, std::size_t bytes) noexcept = 0;
};

class Mirror final : public IntervalNotifier {
 public:
  Mirror(Session& session, Node& node, OpenFlags& flags) noexcept;
  ~Mirror() override;

  // 0 or a negative errno. cpages and faults are results (ABI-07, ABI-08); the rest of the block is read only.
  [[nodiscard]] int run(unsigned number, Command& command, CallerBuffer& buffer) noexcept;
  [[nodiscard]] Node& node() noexcept { return node_; }

  [[nodiscard]] OpenFlags& flags() noexcept { return flags_; }
  // Pages came home or went elsewhere: their entries are void.
  void forget_range(PageRange range) noexcept EXCLUDES(mutex_);

  [[nodiscard]] bool invalidate(const NotifierRange& range, std::uint64_t cur_seq) noexcept override EXCLUDES(mutex_);

 private:
  // The device page table: where each page of the program is, as the device knows it. Entries are PageEntry words with
  // state kDevice; frame numbers below the device range are RAM, by virtual page, 0 the zero page.
  static constexpr std::uint64_t kTagWrite = PageEntry::kWritable, kTagAtomic = PageEntry::kExclusiveMarker;

  [[nodiscard]] int read(Command& command, CallerBuffer& buffer) noexcept;
  [[nodiscard]] int write(Command& command, CallerBuffer& buffer) noexcept;
  [[nodiscard]] int migrate_to_device(Command& command, CallerBuffer& buffer) noexcept;
  [[nodiscard]] int migrate_to_system(Command& command) noexcept;
  [[nodiscard]] int snapshot(Command& command, CallerBuffer& buffer) noexcept;
  [[nodiscard]] int exclusive(Command& command, CallerBuffer& buffer) noexcept;
  [[nodiscard]] int check_exclusive(Command& command) noexcept;

  [[nodiscard]] int block_to_device(PageRange block) noexcept;
  [[nodiscard]] int block_to_system(PageRange block, std::uint64_t* cpages) noexcept;
  void fill_destinations(MigrateVma& args) noexcept;
  [[nodiscard]] std::uint64_t take_in(const MigrateVma& args, std::uint64_t i) noexcept;
  [[nodiscard]] std::uint64_t take_out(const MigrateVma& args, std::uint64_t i) noexcept;
  // One fault round from `at` on, in blocks of 32 pages (RD-02, RD-05). 0 or a negative errno.
  [[nodiscard]] int fault_round(PageRange rest, bool write) noexcept;
  // Copies pages from the device's view while entries last; returns how many. `data` is the bounce buffer at the first.
  [[nodiscard]] std::uint64_t copy_out(PageRange range, std::byte* data) noexcept;
  [[nodiscard]] std::uint64_t copy_in(PageRange range, const std::byte* data) noexcept;
  [[nodiscard]] bool is_shared_private(PageIndex at) noexcept;
  [[nodiscard]] std::uint8_t snapshot_byte(HmmPfn word) noexcept;
  [[nodiscard]] PageEntry entry(PageIndex at) noexcept EXCLUDES(mutex_);
  // The pages from range.first on (at most 512) that lie in one piece on this private node, from `*at` on there; empty: the
  // first does not.
  [[nodiscard]] PageRange run_on_node(PageRange range, Pfn* at) noexcept EXCLUDES(mutex_);
  [[nodiscard]] int deliver(PageRange range, Command& command, CallerBuffer& buffer) noexcept;

  Session& session_;
  Node& node_;
  OpenFlags& flags_;
  Mutex mutex_;
  PageTable table_ GUARDED_BY(mutex_);
};

}  // namespace whimbrel::mirror
