#include "preload/libc_walk.h"

#include <dlfcn.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "base/syscall.h"

// Exported by libc for those who walk all open files.
extern "C" {
using FileIterator = struct OpenFile*;
FileIterator _IO_iter_begin() __attribute__((weak));
FileIterator _IO_iter_end() __attribute__((weak));
FileIterator _IO_iter_next(FileIterator) __attribute__((weak));
FILE* _IO_iter_file(FileIterator) __attribute__((weak));
void _IO_list_lock() __attribute__((weak));
void _IO_list_unlock() __attribute__((weak));
}

namespace whimbrel {
namespace {

// How libc describes a field to thread debuggers: size in bits, number of such, offset in bytes.
struct FieldDescription {
  std::uint32_t bits;
  std::uint32_t elements;
  std::uint32_t offset;
};

// Where libc keeps its list of threads; all null when it does not say.
struct ThreadLists {
  const char* rtld_global = nullptr;
  const FieldDescription* stacks_used = nullptr;  // threads with stacks made by libc, dead ones not yet reaped included
  const FieldDescription* stacks_user = nullptr;  // threads with stacks of the program's, and the main thread
  const FieldDescription* list = nullptr;         // link within a thread's control block
  const FieldDescription* specific = nullptr;     // table of pointers to blocks of thread-specific data
  const std::uint32_t* level2_bytes = nullptr;    // size of such a block

  [[nodiscard]] bool known() const noexcept {
    return rtld_global != nullptr && stacks_used != nullptr && stacks_user != nullptr && list != nullptr &&
           specific != nullptr && level2_bytes != nullptr && blocks() <= kMostBlocks;
  }
  // Pointers in a thread's table of blocks.
  [[nodiscard]] std::size_t blocks() const noexcept { return specific->bits / 8 / sizeof(void*); }
  static constexpr std::size_t kMostBlocks = 64;
};
ThreadLists g_lists;

template <class T>
const T* symbol(const char* name) noexcept {
  return static_cast<const T*>(dlsym(RTLD_DEFAULT, name));
}

// Brings the page home; the value is of no interest. Reading is enough: nothing leaves while eviction is parked.
void touch_range(const void* from, std::size_t bytes) noexcept {
  const auto* at = static_cast<const volatile char*>(from);
  for (std::size_t i = 0; i < bytes; i += 4096) (void)at[i];
  (void)at[bytes - 1];
}

// Reads memory that another thread may be unmapping this moment: false instead of a crash.
bool read_carefully(const void* from, void* to, std::size_t bytes) noexcept {
  iovec here{to, bytes};
  iovec there{const_cast<void*>(from), bytes};
  return sys::call(SYS_process_vm_readv, sys::call(SYS_getpid), sys::arg(&here), 1, sys::arg(&there), 1, 0) ==
         static_cast<long>(bytes);
}

// What lies below was used by deeper calls and can have left since; handlers in the child may go as deep again. Only 16 KiB are
// promised to a thread, so no more than a few are touched in any case. How far down the rest goes nobody tells: the guard page,
// or whatever else is below, ends the reading.
__attribute__((noinline)) void touch_stack() noexcept {
  constexpr std::size_t kPagesBelow = 32;
  volatile char frames[6 * 1024];
  for (std::size_t i = 0; i < sizeof frames; i += 1024) frames[i] = 0;
  char bytes[kPagesBelow];
  iovec here{bytes, sizeof bytes};
  iovec there[kPagesBelow];
  for (std::size_t i = 0; i < kPagesBelow; ++i) there[i] = {const_cast<char*>(&frames[0]) - i * 4096, 1};
  (void)sys::call(SYS_process_vm_readv, sys::call(SYS_getpid), sys::arg(&here), 1, sys::arg(there), kPagesBelow, 0);
}

void touch_files() noexcept {
  if (_IO_iter_begin == nullptr || _IO_list_lock == nullptr) return;
  // Another thread may hold the list's lock while it waits for a page: it gets it, for faults are served meanwhile.
  _IO_list_lock();
  for (FileIterator it = _IO_iter_begin(); it != _IO_iter_end(); it = _IO_iter_next(it)) {
    const FILE* file = _IO_iter_file(it);
    touch_range(file, sizeof *file);
    if (file->_lock != nullptr) touch_range(file->_lock, 16);
  }
  _IO_list_unlock();
}

// The second and later blocks of a thread's specific data (more than 32 keys) come from malloc.
void touch_specific_data(const char* thread) noexcept {
  const void* blocks[ThreadLists::kMostBlocks];
  const std::size_t count = g_lists.blocks();
  if (!read_carefully(thread + g_lists.specific->offset, blocks, count * sizeof blocks[0])) return;
  char data[1024];
  const std::size_t bytes = *g_lists.level2_bytes < sizeof data ? *g_lists.level2_bytes : sizeof data;
  for (std::size_t i = 1; i < count; ++i) {
    if (blocks[i] != nullptr) (void)read_carefully(blocks[i], data, bytes);
  }
}

// Without libc's lock for it, which it does not export: a link that changes meanwhile ends the walk early, and threads
// come and go in the child's copy just as well.
void touch_threads(const FieldDescription& field) noexcept {
  constexpr int kMostThreads = 100'000;
  const char* head = g_lists.rtld_global + field.offset;
  const char* link = head;
  for (int n = 0; n < kMostThreads; ++n) {
    const char* next = nullptr;
    if (!read_carefully(link, &next, sizeof next) || next == head || next == nullptr) return;
    touch_specific_data(next - g_lists.list->offset);
    link = next;
  }
}

}  // namespace

void prepare_libc_walk() noexcept {
  g_lists.rtld_global = symbol<char>("_rtld_global");
  g_lists.stacks_used = symbol<FieldDescription>("_thread_db_rtld_global__dl_stack_used");
  g_lists.stacks_user = symbol<FieldDescription>("_thread_db_rtld_global__dl_stack_user");
  g_lists.list = symbol<FieldDescription>("_thread_db_pthread_list");
  g_lists.specific = symbol<FieldDescription>("_thread_db_pthread_specific");
  g_lists.level2_bytes = symbol<std::uint32_t>("_thread_db_sizeof_pthread_key_data_level2");
}

void touch_what_fork_touches() noexcept {
  touch_stack();
  touch_range(__builtin_thread_pointer(), 4096);
  touch_files();
  if (g_lists.known()) {
    touch_threads(*g_lists.stacks_used);
    touch_threads(*g_lists.stacks_user);
  }
}

}  // namespace whimbrel
