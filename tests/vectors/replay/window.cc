#include "window.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "tests/mirror/page_pattern.h"

namespace vectors {
namespace {

constexpr std::uintptr_t kWindowStart = 0x200000000000;

sigjmp_buf escape;

void on_fault(int signal) { siglongjmp(escape, signal); }

const char* signal_word(int signal) { return signal == SIGBUS ? "BUS" : "SEGV"; }

// Both return 0 or the signal that answered the access.
int write_page(long page, unsigned value) {
  if (const int signal = sigsetjmp(escape, 1)) return signal;
  page_stamp(window_page(page), value, page);
  return 0;
}
int read_page(long page, char* copy) {
  if (const int signal = sigsetjmp(escape, 1)) return signal;
  std::memcpy(copy, window_page(page), kPageSize);
  return 0;
}

}  // namespace

char* window_page(long page) { return reinterpret_cast<char*>(kWindowStart + bytes_of(page)); }

void catch_faults() {
  // A stack of its own: the handler must run even if the fault came from a full stack.
  static char stack[65536];
  stack_t alternate{};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  sigaltstack(&alternate, nullptr);
  struct sigaction action {};
  action.sa_handler = on_fault;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

void cpu_write(long first, long count, long step, unsigned value, run_list& words) {
  for (long i = 0; i < count; i++) {
    const int signal = write_page(first + i * step, value);
    run_list_add(&words, signal != 0 ? signal_word(signal) : "ok");
  }
}

void cpu_read(long first, long count, long step, run_list& words) {
  static char copy[kPageSize];
  for (long i = 0; i < count; i++) {
    const long page = first + i * step;
    const int signal = read_page(page, copy);
    char word[PAGE_WORD_SIZE];
    if (signal == 0) page_describe(copy, page, word);
    run_list_add(&words, signal != 0 ? signal_word(signal) : word);
  }
}

void describe_pages(const char* data, long first, long count, run_list& words) {
  for (long i = 0; i < count; i++) {
    char word[PAGE_WORD_SIZE];
    page_describe(data + bytes_of(i), first + i, word);
    run_list_add(&words, word);
  }
}

Buffer::Buffer(long pages) : size_(bytes_of(std::max(pages, 1l))) {
  void* at = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (at == MAP_FAILED) {
    std::perror("replay: buffer");
    _exit(3);
  }
  data_ = static_cast<char*>(at);
}

Buffer::~Buffer() { munmap(data_, size_); }

}  // namespace vectors
