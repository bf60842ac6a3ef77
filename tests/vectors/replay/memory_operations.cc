// Operations of the address space, the CPU, and files in memory.
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "replayer.h"
#include "tests/mirror/page_pattern.h"
#include "window.h"

namespace vectors {
namespace {

unsigned as_value(long number) { return static_cast<unsigned>(number); }

int new_file() { return memfd_create("replay", MFD_CLOEXEC); }

// One page at a time through the file: what pread or pwrite of a single page came to.
const char* transfer_word(ssize_t transferred) {
  if (transferred < 0) return errno_name(errno);
  return transferred == static_cast<ssize_t>(kPageSize) ? nullptr : "short";
}

}  // namespace

void Replayer::run_memory_operation(const Operation& operation) {
  switch (operation.verb) {
    case Verb::kMap:
      return map(operation);
    case Verb::kRemap:
      return remap(operation);
    case Verb::kUnmap:
    case Verb::kProtect:
    case Verb::kLock:
    case Verb::kUnlock:
    case Verb::kAdvise:
      return change_range(operation);
    case Verb::kWrite:
    case Verb::kRead:
      return access(operation);
    case Verb::kKernelRead:
    case Verb::kKernelWrite:
      return kernel_copy(operation);
    case Verb::kMincore:
      return mincore(operation);
    default:
      return use_file(operation);
  }
}

void Replayer::map(const Operation& operation) {
  const auto& number = operation.number;
  const std::size_t length = bytes_of(number[2]);
  const MapKind& kind = operation.kind;
  const int file = kind.file < 0 ? -1 : files_[static_cast<std::size_t>(kind.file)];
  void* at = mmap(window_page(number[1]), length, static_cast<int>(number[3]), MAP_FIXED | kind.flags, file,
                  static_cast<off_t>(bytes_of(kind.file_offset)));
  out_.put(" ");
  out_.put_result(at == MAP_FAILED ? -1 : 0);
  if (at == MAP_FAILED) return;
  if (operation.huge) madvise(at, length, MADV_HUGEPAGE);
  if (operation.nohuge) madvise(at, length, MADV_NOHUGEPAGE);
}

void Replayer::remap(const Operation& operation) {
  const auto& number = operation.number;
  void* at = mremap(window_page(number[1]), bytes_of(number[2]), bytes_of(number[4]), static_cast<int>(number[5]),
                    window_page(number[3]));
  out_.put(" ");
  out_.put_result(at == MAP_FAILED ? -1 : 0);
}

void Replayer::change_range(const Operation& operation) {
  char* at = window_page(operation.number[1]);
  const std::size_t length = bytes_of(operation.number[2]);
  const int how = static_cast<int>(operation.number[3]);
  long result = 0;
  switch (operation.verb) {
    case Verb::kUnmap:
      result = munmap(at, length);
      break;
    case Verb::kProtect:
      result = mprotect(at, length, how);
      break;
    case Verb::kLock:
      result = mlock(at, length);
      break;
    case Verb::kUnlock:
      result = munlock(at, length);
      break;
    default:
      result = madvise(at, length, how);
      break;
  }
  out_.put(" ");
  out_.put_result(result);
}

void Replayer::access(const Operation& operation) {
  const auto& number = operation.number;
  static run_list words;
  words = {};
  if (operation.verb == Verb::kWrite) {
    cpu_write(number[1], number[2], operation.words > 4 ? number[4] : 1, as_value(number[3]), words);
  } else {
    cpu_read(number[1], number[2], operation.words > 3 ? number[3] : 1, words);
  }
  out_.put_list(words);
}

void Replayer::kernel_copy(const Operation& operation) {
  const bool writing = operation.verb == Verb::kKernelWrite;
  const int file = new_file();
  static run_list words;
  words = {};
  char page[kPageSize];
  for (long i = operation.number[1]; i < operation.number[1] + operation.number[2]; i++) {
    char contents[PAGE_WORD_SIZE];
    const char* word = nullptr;
    if (writing) {
      page_stamp(page, as_value(operation.number[3]), i);
      if (pwrite(file, page, kPageSize, 0) != static_cast<ssize_t>(kPageSize)) _exit(3);
      word = transfer_word(pread(file, window_page(i), kPageSize, 0));
      if (word == nullptr) word = "ok";
    } else {
      word = transfer_word(pwrite(file, window_page(i), kPageSize, 0));
      if (word == nullptr) {
        if (pread(file, page, kPageSize, 0) != static_cast<ssize_t>(kPageSize)) _exit(3);
        page_describe(page, i, contents);
        word = contents;
      }
    }
    run_list_add(&words, word);
  }
  out_.put_list(words);
  close(file);
}

void Replayer::mincore(const Operation& operation) {
  static unsigned char resident[kWindowPages];
  const long pages = operation.number[2];
  int result = -1;
  errno = EINVAL;
  if (pages <= kWindowPages) result = ::mincore(window_page(operation.number[1]), bytes_of(pages), resident);
  out_.put(" ");
  out_.put_result(result);
  if (result != 0) return;
  static run_list words;
  words = {};
  for (long i = 0; i < pages; i++) run_list_add(&words, (resident[i] & 1) != 0 ? "1" : "0");
  out_.put_list(words);
}

void Replayer::use_file(const Operation& operation) {
  const auto& number = operation.number;
  int& file = files_[static_cast<std::size_t>(number[1])];
  if (operation.verb == Verb::kTruncate) {
    out_.put(" ");
    out_.put_result(ftruncate(file, static_cast<off_t>(bytes_of(number[2]))));
    return;
  }
  const bool making = operation.verb == Verb::kMakeFile;
  const bool writing = making || operation.verb == Verb::kWriteFile;
  if (making) file = new_file();
  const long first = making ? 0 : number[2];
  const long count = making ? number[2] : number[3];
  const unsigned value = as_value(making ? number[3] : number[4]);
  static run_list words;
  words = {};
  for (long i = first; i < first + count; i++) {
    char page[kPageSize];
    char contents[PAGE_WORD_SIZE];
    const auto at = static_cast<off_t>(bytes_of(i));
    if (writing) page_stamp(page, value, i);
    const char* word = transfer_word(writing ? pwrite(file, page, kPageSize, at) : pread(file, page, kPageSize, at));
    if (word == nullptr && !writing) page_describe(page, i, contents);
    if (word == nullptr) word = writing ? "ok" : contents;
    run_list_add(&words, word);
  }
  out_.put_list(words);
}

}  // namespace vectors
