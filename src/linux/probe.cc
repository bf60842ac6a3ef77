#include "linux/probe.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "linux/guarded_mmu.h"
#include "linux/mapping_news.h"
#include "linux/sys.h"
#include "linux/uapi.h"
#include "mm/address.h"

namespace whimbrel {
namespace {

using Weight = ProbeRow::Weight;

// Text into a row's fixed place, cut where it does not fit.
class Detail {
 public:
  explicit Detail(ProbeRow& row) noexcept : text_(row.detail) { text_[0] = 0; }
  Detail& add(std::string_view s) noexcept {
    for (const char c : s) {
      if (used_ + 1 < sizeof(ProbeRow::detail)) text_[used_++] = c;
    }
    text_[used_] = 0;
    return *this;
  }
  Detail& add(std::uint64_t n) noexcept {
    char digits[20];
    std::size_t k = sizeof digits;
    do digits[--k] = static_cast<char>('0' + n % 10);
    while ((n /= 10) != 0);
    return add({digits + k, sizeof digits - k});
  }

 private:
  char* text_;
  std::size_t used_ = 0;
};

class Prober {
 public:
  explicit Prober(MemorySource& memory) noexcept : memory_(memory) {}

  ProbeReport run() noexcept {
    UserfaultRequest request;
    report_.ladder = climb(request, {.prove_all = true});
    kernel();
    rungs();
    abilities();
    const Result<void*> scratch = sys::mmap(nullptr, kScratchBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    scratch_ = scratch ? static_cast<std::byte*>(*scratch) : nullptr;
    pagemap_scan();
    procmap_query();
    process_madvise();
    mapping_news();
    huge_pages();
    if (scratch_ != nullptr) sys::munmap(scratch_, kScratchBytes);
    pin_counters();
    limits();
    overcommit();
    return report_;
  }

 private:
  static constexpr std::size_t kScratchBytes = 2 * kHugeSize;  // holds one aligned huge page

  ProbeRow& row(ProbeId id, Weight weight, const char* name, bool works, int error = 0) noexcept {
    ProbeRow& r = report_.rows[static_cast<std::size_t>(id)];
    r.id = id;
    r.weight = weight;
    r.name = name;
    r.works = works;
    r.sys = works ? 0 : error;
    if (!works && error != 0) Detail(r).add(errc_name(sys::errc_of(error)));
    return r;
  }
  static void say(ProbeRow& r, const char* good, const char* bad, const char* fix) noexcept {
    r.consequence = r.works ? good : bad;
    r.fix = r.works ? "" : fix;
  }

  void kernel() noexcept {
    utsname name{};
    sys::call(SYS_uname, sys::arg(&name));
    unsigned major = 0, minor = 0;
    const char* at = name.release;
    for (; *at >= '0' && *at <= '9'; ++at) major = major * 10 + static_cast<unsigned>(*at - '0');
    if (*at == '.') {
      for (++at; *at >= '0' && *at <= '9'; ++at) minor = minor * 10 + static_cast<unsigned>(*at - '0');
    }
    ProbeRow& r = row(ProbeId::kKernel, Weight::kFact, "kernel", major > 6 || (major == 6 && minor >= 8));
    Detail(r).add(name.release);
    say(r, "new enough to move pages (6.8)", "older than 6.8: pages cannot be moved",
        "boot a kernel of version 6.8 or newer");
  }

  void rungs() noexcept {
    const Result<std::uint64_t> setting = sys::read_number("/proc/sys/vm/unprivileged_userfaultfd");
    ProbeRow& s = row(ProbeId::kUnprivilegedSetting, Weight::kFact, "vm.unprivileged_userfaultfd",
                      setting && *setting == 1, setting ? 0 : setting.error().sys);
    if (setting) Detail(s).add(*setting);
    say(s, "every user may use userfaultfd with kernel faults",
        "users without CAP_SYS_PTRACE get userfaultfd for user-mode faults only",
        "sysctl -w vm.unprivileged_userfaultfd=1");
    static constexpr struct {
      ProbeId id;
      const char* good;
      const char* bad;
      const char* fix;
    } kTexts[] = {
        {ProbeId::kRungSystemCall, "transparent: system calls on away memory are served too",
         "the plain system call is refused",
         "sysctl -w vm.unprivileged_userfaultfd=1, or grant CAP_SYS_PTRACE; in a container allow userfaultfd in its "
         "seccomp profile"},
        {ProbeId::kRungDevice, "transparent, through the device", "the device cannot be used",
         "setfacl -m u:$USER:rw /dev/userfaultfd (in a container: --device /dev/userfaultfd)"},
        {ProbeId::kRungUserMode, "works, but system calls on away memory fail with EFAULT",
         "not even faults of user code can be handled",
         "allow userfaultfd in the container's seccomp profile, or use a kernel built with CONFIG_USERFAULTFD"},
    };
    for (int i = 0; i < 3; ++i) {
      const Proof& proof = report_.ladder.proofs[i];
      const bool works = proof.serves() && proof.move;
      ProbeRow& r = row(kTexts[i].id, Weight::kHelps, rung_name(kRungs[i]), works, proof.failure.sys);
      if (!works && proof.opened) Detail(r).add("opens, but ").add(proof.failure.where).add(" does not work");
      say(r, kTexts[i].good, kTexts[i].bad, kTexts[i].fix);
      if (report_.ladder.chosen == i) Detail(r).add("used");
    }
    const Result<void> guarded = prove_guarded_arenas(memory_);
    report_.guarded = guarded.has_value();
    ProbeRow& g = row(ProbeId::kGuardedArenas, Weight::kHelps, GuardedMmu::name(), report_.guarded,
                      guarded ? 0 : guarded.error().sys);
    if (!guarded) Detail(g).add(guarded.error().where);
    if (guarded && report_.ladder.chosen < 0) Detail(g).add("used");
    say(g, "without userfaultfd: sessions manage memory that they allocate; system calls on away memory fail with EFAULT, "
        "forked children inherit none of it, nothing can be adopted",
        "sessions need userfaultfd: shared memory or signals are refused here",
        "allow mmap, mprotect and madvise(MADV_REMOVE) of shared memory in the seccomp profile");
  }

  // Abilities of the rung that is used; of the best one that opens, when none can be used.
  void abilities() noexcept {
    const Ladder& ladder = report_.ladder;
    int best = ladder.chosen;
    for (int i = 0; best < 0 && i < 3; ++i) {
      if (ladder.proofs[i].opened) best = i;
    }
    const Proof proof = best < 0 ? Proof{} : ladder.proofs[best];
    const int error = best < 0 ? ladder.first_failure.sys : proof.failure.sys;
    say(row(ProbeId::kMove, Weight::kNeeded, "UFFDIO_MOVE", proof.move, error), "pages can be taken out atomically",
        "pages cannot be taken out of a running program",
        "use a kernel of version 6.8 or newer; under a seccomp filter allow ioctl 0xc028aa05");
    say(row(ProbeId::kKernelFaults, Weight::kHelps, "faults of system calls", proof.kernel_faults),
        "read(2), write(2) and the like work on away memory",
        "system calls on away memory fail with EFAULT: only for programs that guard them",
        "sysctl -w vm.unprivileged_userfaultfd=1, or setfacl -m u:$USER:rw /dev/userfaultfd");
    say(row(ProbeId::kWriteProtect, Weight::kHelps, "UFFDIO_WRITEPROTECT", proof.write_protect, error),
        "clean pages can leave without being written again", "every page that leaves is written to the device again",
        "use a kernel of version 5.7 or newer");
    say(row(ProbeId::kPoison, Weight::kHelps, "UFFDIO_POISON", proof.poison, error),
        "a page that a device lost gives SIGBUS, as in the kernel",
        "a page that a device lost stops the program with a message instead of SIGBUS",
        "use a kernel of version 6.6 or newer");
  }

  void pagemap_scan() noexcept {
    int error = ENOMEM;
    bool works = false;
    const Result<int> fd = sys::open("/proc/thread-self/pagemap", O_RDONLY);
    if (!fd) error = fd.error().sys;
    if (fd && scratch_ != nullptr) {
      scratch_[0] = std::byte{1};
      const Result<std::uint64_t> categories = scan_page(*fd, scratch_);
      works = categories && (*categories & uapi::kPagePresent) != 0;
      error = categories ? 0 : categories.error().sys;
    }
    if (fd) sys::close(*fd);
    say(row(ProbeId::kPagemapScan, Weight::kHelps, "PAGEMAP_SCAN", works, error), "present pages are found in one call",
        "present pages are found page by page: scans cost about ten times more",
        "use a kernel of version 6.7 or newer");
  }

  static Result<std::uint64_t> scan_page(int fd, const void* page) noexcept {
    uapi::PageRegion region{};
    uapi::PagemapScan request{};
    request.size = sizeof request;
    request.start = VirtualAddress(page).raw();
    request.end = request.start + kPageSize;
    request.vec = VirtualAddress(&region).raw();
    request.vec_len = 1;
    request.category_anyof_mask = uapi::kPagePresent | uapi::kPageSwapped;
    request.return_mask = uapi::kPagePresent | uapi::kPageHuge;
    const Result<long> got = sys::ioctl(fd, uapi::kPagemapScan, &request, "PAGEMAP_SCAN");
    if (!got) return std::unexpected(got.error());
    return *got == 0 ? 0 : region.categories;
  }

  void procmap_query() noexcept {
    uapi::ProcmapQuery query{};
    query.size = sizeof query;
    query.query_flags = uapi::kCoveringOrNextVma;
    query.query_addr = VirtualAddress(&query).raw();
    const Result<int> fd = sys::open("/proc/thread-self/maps", O_RDONLY);
    Result<long> answer = fail(Errc::kInvalid, fd ? 0 : fd.error().sys);
    if (fd) {
      answer = sys::ioctl(*fd, uapi::kProcmapQuery, &query, "PROCMAP_QUERY");
      sys::close(*fd);
    }
    const bool works = answer && query.vma_start <= query.query_addr && query.query_addr < query.vma_end;
    say(row(ProbeId::kProcmapQuery, Weight::kHelps, "PROCMAP_QUERY", works, answer ? 0 : answer.error().sys),
        "one mapping is looked up in one call",
        "mappings are looked up by reading /proc/self/maps as text: slow "
        "where there are thousands",
        "use a kernel of version 6.11 or newer");
  }

  void process_madvise() noexcept {
    const Result<int> self = sys::pidfd_self();
    Result<std::size_t> advised = fail(Errc::kInvalid, self ? ENOMEM : self.error().sys);
    bool works = false;
    if (self && scratch_ != nullptr) {
      scratch_[0] = std::byte{1};
      scratch_[2 * kPageSize] = std::byte{1};
      const iovec ranges[] = {{scratch_, kPageSize}, {scratch_ + 2 * kPageSize, kPageSize}};
      advised = sys::process_madvise(*self, ranges, 2, MADV_DONTNEED);
      works = advised && *advised == 2 * kPageSize && scratch_[0] == std::byte{0};
    }
    if (self) sys::close(*self);
    say(row(ProbeId::kProcessMadvise, Weight::kHelps, "process_madvise", works, advised ? 0 : advised.error().sys),
        "scattered pages are dropped in one call", "scattered pages are dropped one by one: up to fifty times slower",
        "use a kernel of version 6.13 or newer");
  }

  void mapping_news() noexcept {
    MappingNews news;
    const Result<void> opened = news.open(MappingNews::Caller::kToo);
    bool works = false;
    if (const Result<void*> made = opened ? sys::mmap(nullptr, kPageSize, PROT_NONE, MAP_PRIVATE) : fail(Errc::kInvalid)) {
      works = news.any();
      sys::munmap(*made, kPageSize);
    }
    say(row(ProbeId::kMappingNews, Weight::kHelps, "perf_event_open", works, opened ? 0 : opened.error().sys),
        "new mappings are watched as they are made",
        "new mappings are looked for every two milliseconds: a program that fills fresh memory at full speed can be 10 to "
        "30 % over its budget for a moment",
        "sysctl kernel.perf_event_paranoid=2, and in a container a profile that permits perf_event_open");
  }

  void huge_pages() noexcept {
    char setting[64] = {};
    const Result<std::size_t> read =
        sys::read_text("/sys/kernel/mm/transparent_hugepage/enabled", setting, sizeof setting);
    bool works = false;
    const Result<int> fd = sys::open("/proc/thread-self/pagemap", O_RDONLY);
    if (fd && scratch_ != nullptr) {
      const std::uint64_t begin = VirtualAddress(scratch_).raw();
      auto* const aligned = scratch_ + ((begin + kHugeSize - 1) / kHugeSize * kHugeSize - begin);
      (void)sys::madvise(aligned, kHugeSize, MADV_DONTNEED);
      (void)sys::madvise(aligned, kHugeSize, MADV_HUGEPAGE);
      aligned[5] = std::byte{1};
      const Result<std::uint64_t> categories = scan_page(*fd, aligned);
      works = categories && (*categories & uapi::kPageHuge) != 0;
    }
    if (fd) sys::close(*fd);
    ProbeRow& r = row(ProbeId::kHugePages, Weight::kHelps, "huge pages", works);
    if (read) {
      const std::string_view text(setting, *read);
      const std::size_t open = text.find('['), close = text.find(']');
      if (open != text.npos && close != text.npos && open < close) Detail(r).add({text.data() + open + 1, close - open - 1});
    }
    say(r, "streams come home 2 MiB at a time", "streams come home in small pages: several times slower",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
  }

  void pin_counters() noexcept {
    // The kernel folds its per-CPU counts only when somebody writes here; without that small counts stay invisible.
    int error = 0;
    bool refreshed = false;
    const Result<int> refresh = sys::open("/proc/sys/vm/stat_refresh", O_WRONLY);
    if (refresh) {
      const Result<std::size_t> wrote = sys::write(*refresh, "1", 1);
      refreshed = wrote.has_value();
      if (!wrote) error = wrote.error().sys;
      sys::close(*refresh);
    } else {
      error = refresh.error().sys;
    }
    constexpr std::size_t kRoom = 32 * 1024;
    auto* const text = static_cast<char*>(memory_.take(kRoom));
    bool counted = false;
    if (text != nullptr) {
      const Result<std::size_t> length = sys::read_text("/proc/vmstat", text, kRoom);
      counted = length && std::string_view(text, *length).find("nr_foll_pin_acquired ") != std::string_view::npos;
      memory_.give(text, kRoom);
    }
    ProbeRow& r = row(ProbeId::kPinCounters, Weight::kHelps, "pin counters", refreshed && counted, error);
    say(r, "scattered pages can be dropped in batches when no I/O holds them",
        "scattered pages leave by MOVE, which is slower",
        "run as root (the counters are refreshed by vm.stat_refresh)");
  }

  void limits() noexcept {
    const Result<std::uint64_t> maps = sys::read_number("/proc/sys/vm/max_map_count");
    ProbeRow& m = row(ProbeId::kMapCount, Weight::kHelps, "vm.max_map_count", maps && *maps >= 65530);
    if (maps) Detail(m).add(*maps);
    say(m, "enough mappings for splitting", "a program with many mappings may reach the limit",
        "sysctl -w vm.max_map_count=262144");
    limit(ProbeId::kAddressSpace, "RLIMIT_AS", RLIMIT_AS, sys::kUnlimited, Weight::kHelps,
          "the engine's reservations have room", "the engine reserves at most a quarter of what is left",
          "ulimit -v unlimited");
    limit(ProbeId::kOpenFiles, "RLIMIT_NOFILE", RLIMIT_NOFILE, 16, Weight::kHelps, "enough descriptors for the engine",
          "some of the engine's descriptors have to be left out", "ulimit -n 1024");
    limit(ProbeId::kLockedMemory, "RLIMIT_MEMLOCK", RLIMIT_MEMLOCK, 0, Weight::kFact,
          "userfaultfd counts nothing against it", "", "");
  }
  void limit(ProbeId id, const char* name, int resource, std::uint64_t wanted, Weight weight, const char* good,
             const char* bad, const char* fix) noexcept {
    const Result<sys::Limit> value = sys::limit(resource);
    ProbeRow& r = row(id, weight, name, value && value->soft >= wanted);
    if (value && value->soft == sys::kUnlimited) Detail(r).add("unlimited");
    if (value && value->soft != sys::kUnlimited) Detail(r).add(value->soft);
    say(r, good, bad, fix);
  }

  void overcommit() noexcept {
    const Result<std::uint64_t> mode = sys::read_number("/proc/sys/vm/overcommit_memory");
    ProbeRow& r = row(ProbeId::kOvercommit, Weight::kHelps, "vm.overcommit_memory", mode && *mode != 2);
    if (mode) Detail(r).add(*mode);
    say(r, "reservations cost nothing", "strict accounting: the engine's memory counts when it is committed",
        "sysctl -w vm.overcommit_memory=0");
  }

  MemorySource& memory_;
  ProbeReport report_;
  std::byte* scratch_ = nullptr;
};

}  // namespace

ProbeReport probe(MemorySource& memory) noexcept { return Prober(memory).run(); }

}  // namespace whimbrel
