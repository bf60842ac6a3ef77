#include "stacks/perf_stream.h"

#include <linux/perf_event.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>

namespace whimbrel::stacks {
namespace {

constexpr std::size_t kPage = 4096;
// What an ordinary user may have of it (perf_event_mlock_kb) by default; less where others have taken some.
constexpr std::size_t kRingPages[] = {128, 32, 8};
constexpr std::uint32_t kStackBytes = 8192;

// The kernel's numbers of the registers (asm/perf_regs.h), as they come in a sample, and DWARF's.
constexpr std::uint64_t kRegisterMask = 0xff01ff;
constexpr std::size_t kSampledRegisters = 17;
constexpr std::array<std::size_t, kSampledRegisters> kDwarfNumbers = {0, 3, 2, 1, 4, 5, 6, 7, kProgramCounter, 8, 9, 10, 11, 12, 13, 14, 15};

perf_event_attr attributes(std::uint64_t period, bool system_calls) {
  perf_event_attr a;
  std::memset(&a, 0, sizeof a);
  a.type = PERF_TYPE_SOFTWARE;
  a.size = sizeof a;
  // All of them: of those that userfaultfd serves, touches by the program count as minor faults, touches by system calls as major.
  a.config = PERF_COUNT_SW_PAGE_FAULTS;
  a.sample_period = period;
  a.sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_ADDR | PERF_SAMPLE_REGS_USER | PERF_SAMPLE_STACK_USER;
  a.sample_regs_user = kRegisterMask;
  a.sample_stack_user = kStackBytes;
  a.disabled = 1;
  a.enable_on_exec = 1;
  a.inherit = 1;
  a.exclude_kernel = system_calls ? 0 : 1;
  a.exclude_hv = 1;
  a.mmap = a.mmap2 = 1;
  a.comm = a.comm_exec = 1;
  a.task = 1;
  a.sample_id_all = 1;
  a.use_clockid = 1;
  a.clockid = CLOCK_MONOTONIC;
  return a;
}

int perf_event_open(const perf_event_attr& a, pid_t pid, int processor) {
  return static_cast<int>(syscall(SYS_perf_event_open, &a, pid, processor, -1, PERF_FLAG_FD_CLOEXEC));
}

template <class T>
T read_at(const std::byte*& at) {
  T out;
  std::memcpy(&out, at, sizeof out);
  at += sizeof out;
  return out;
}

void parse_sample(const std::byte* at, PerfRecord* out) {
  (void)read_at<std::uint64_t>(at);  // of the kernel, when it was in a system call; the user's is among the registers
  out->pid = read_at<std::uint32_t>(at);
  (void)read_at<std::uint32_t>(at);
  out->time_ns = read_at<std::uint64_t>(at);
  out->address = read_at<std::uint64_t>(at);
  if (read_at<std::uint64_t>(at) != PERF_SAMPLE_REGS_ABI_NONE) {
    for (const std::size_t number : kDwarfNumbers) out->registers[number] = read_at<std::uint64_t>(at);
  }
  const auto room = read_at<std::uint64_t>(at);
  if (room == 0) return;
  std::uint64_t used;
  std::memcpy(&used, at + room, sizeof used);
  out->stack.assign(at, at + std::min(used, room));
}

}  // namespace

PerfStream::~PerfStream() {
  for (const Ring& ring : rings_) {
    munmap(ring.base, ring.bytes);
    close(ring.fd);
  }
}

bool PerfStream::permitted(std::string* problem, std::string* advice) {
  const int fd = perf_event_open(attributes(1000, false), 0, -1);
  if (fd >= 0) {
    close(fd);
    return true;
  }
  const int error = errno;
  *problem = std::string("--sample-stacks: the kernel does not give out performance events: ") + std::strerror(error);
  std::string level;
  std::ifstream("/proc/sys/kernel/perf_event_paranoid") >> level;
  *advice = error == EACCES || error == EPERM
                ? "kernel.perf_event_paranoid is " + (level.empty() ? "not readable" : level) +
                      "; as root: sysctl kernel.perf_event_paranoid=2 (in a container, its seccomp profile has to allow perf_event_open as well)"
                : "the kernel must be built with CONFIG_PERF_EVENTS";
  return false;
}

bool PerfStream::open(pid_t pid, std::uint64_t period) {
  const long processors = sysconf(_SC_NPROCESSORS_CONF);
  int error = 0;
  for (int processor = 0; processor < processors; ++processor) {
    if (!open_ring(pid, processor, period) && errno != ENODEV) error = errno;  // one that is switched off
  }
  errno = error;
  return error == 0 && !rings_.empty();
}

bool PerfStream::open_ring(pid_t pid, int processor, std::uint64_t period) {
  Ring ring;
  ring.fd = perf_event_open(attributes(period, system_calls_), pid, processor);
  if (ring.fd < 0 && system_calls_ && (errno == EACCES || errno == EPERM)) {
    system_calls_ = false;
    ring.fd = perf_event_open(attributes(period, false), pid, processor);
  }
  if (ring.fd < 0) return false;
  for (const std::size_t pages : kRingPages) {
    ring.bytes = (pages + 1) * kPage;
    ring.base = mmap(nullptr, ring.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, 0);
    if (ring.base != MAP_FAILED) {
      rings_.push_back(ring);
      return true;
    }
  }
  const int error = errno;
  close(ring.fd);
  errno = error;
  return false;
}

void PerfStream::take(std::vector<PerfRecord>* out) {
  const auto before = static_cast<std::ptrdiff_t>(out->size());
  for (const Ring& ring : rings_) take_ring(ring, out);
  std::stable_sort(out->begin() + before, out->end(), [](const PerfRecord& a, const PerfRecord& b) { return a.time_ns < b.time_ns; });
}

void PerfStream::take_ring(const Ring& ring, std::vector<PerfRecord>* out) {
  auto* control = static_cast<perf_event_mmap_page*>(ring.base);
  const std::uint64_t head = __atomic_load_n(&control->data_head, __ATOMIC_ACQUIRE);
  std::uint64_t tail = control->data_tail;
  const std::byte* const data = static_cast<const std::byte*>(ring.base) + control->data_offset;
  const std::uint64_t size = control->data_size;
  while (tail < head) {
    perf_event_header header;
    std::memcpy(&header, data + tail % size, sizeof header);  // records begin at multiples of 8, so this never wraps
    if (header.size < sizeof header) break;
    const std::byte* record = data + tail % size;
    if (tail % size + header.size > size) {
      scratch_.resize(header.size);
      const std::size_t first = size - tail % size;
      std::memcpy(scratch_.data(), record, first);
      std::memcpy(scratch_.data() + first, data, header.size - first);
      record = scratch_.data();
    }
    parse(record, out);
    tail += header.size;
  }
  __atomic_store_n(&control->data_tail, tail, __ATOMIC_RELEASE);
}

void PerfStream::parse(const std::byte* record, std::vector<PerfRecord>* out) {
  const std::byte* at = record;
  const auto header = read_at<perf_event_header>(at);
  PerfRecord made;
  std::memcpy(&made.time_ns, record + header.size - sizeof made.time_ns, sizeof made.time_ns);  // of all but samples
  switch (header.type) {
    case PERF_RECORD_SAMPLE:
      made.what = PerfRecord::What::kSample;
      parse_sample(at, &made);
      break;
    case PERF_RECORD_MMAP2: {
      made.what = PerfRecord::What::kMapping;
      made.pid = read_at<std::uint32_t>(at);
      (void)read_at<std::uint32_t>(at);
      made.address = read_at<std::uint64_t>(at);
      made.length = read_at<std::uint64_t>(at);
      made.file_offset = read_at<std::uint64_t>(at);
      at += 32;  // device, inode and its generation, protection, flags
      made.path = reinterpret_cast<const char*>(at);
      break;
    }
    case PERF_RECORD_COMM:
      if ((header.misc & PERF_RECORD_MISC_COMM_EXEC) == 0) return;
      made.what = PerfRecord::What::kExec;
      made.pid = read_at<std::uint32_t>(at);
      break;
    case PERF_RECORD_FORK:
    case PERF_RECORD_EXIT: {
      made.pid = read_at<std::uint32_t>(at);
      made.parent = read_at<std::uint32_t>(at);
      const auto thread = read_at<std::uint32_t>(at);
      if (thread != made.pid) return;  // only a thread
      made.what = header.type == PERF_RECORD_FORK ? PerfRecord::What::kFork : PerfRecord::What::kExit;
      break;
    }
    case PERF_RECORD_LOST:
      (void)read_at<std::uint64_t>(at);
      lost_ += read_at<std::uint64_t>(at);
      return;
    default:
      return;
  }
  out->push_back(std::move(made));
}

}  // namespace whimbrel::stacks
