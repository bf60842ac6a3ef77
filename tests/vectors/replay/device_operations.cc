// Operations on the mirror devices.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

#include "replayer.h"
#include "tests/mirror/page_pattern.h"
#include "window.h"

namespace vectors {
namespace {

std::uint64_t as_word(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

int command(int handle, dmirror_nr nr, dmirror_command& block, long page, std::uint64_t pages, const char* buffer) {
  block = {.addr = as_word(window_page(page)), .ptr = as_word(buffer), .npages = pages, .cpages = 0, .faults = 0};
  return ioctl(handle, DMIRROR_REQUEST(nr), &block);
}

void put_counts(Output& out, const dmirror_command& block) {
  out.format(" cpages %llu faults %llu", static_cast<unsigned long long>(block.cpages),
             static_cast<unsigned long long>(block.faults));
}

}  // namespace

void Replayer::run_device_operation(const Operation& operation) {
  int& handle = handles_[static_cast<std::size_t>(operation.number[1])];
  switch (operation.verb) {
    case Verb::kOpen:
      return open_node(operation);
    case Verb::kClose:
      out_.put_result(close(handle));
      handle = -1;
      return;
    case Verb::kDup: {
      int& copy = handles_[static_cast<std::size_t>(operation.number[2])];
      copy = dup(handle);
      return out_.put_result(copy);
    }
    case Verb::kMapDevice: {
      const void* at = mmap(window_page(operation.number[2]), bytes_of(operation.number[3]),
                            static_cast<int>(operation.number[4]), MAP_PRIVATE | MAP_FIXED, handle, 0);
      return out_.put_result(at == MAP_FAILED ? -1 : 0);
    }
    case Verb::kSnapshot:
      return snapshot(operation);
    case Verb::kIoctl:
      return raw_command(operation);
    case Verb::kToDevice:
    case Verb::kDeviceRead:
    case Verb::kDeviceWrite:
    case Verb::kExclusive:
      return move_data(operation);
    default:
      return plain_command(operation);
  }
}

void Replayer::open_node(const Operation& operation) {
  const std::string path = options_.device_prefix + std::to_string(operation.number[2]);
  int& handle = handles_[static_cast<std::size_t>(operation.number[1])];
  handle = open(path.c_str(), O_RDWR);
  out_.put_result(handle);
}

void Replayer::snapshot(const Operation& operation) {
  const long pages = operation.number[3];
  Buffer bytes((pages + DMIRROR_PAGE - 1) / DMIRROR_PAGE);
  dmirror_command block;
  const int result = command(handles_[static_cast<std::size_t>(operation.number[1])], DMIRROR_SNAPSHOT, block,
                             operation.number[2], static_cast<std::uint64_t>(pages), bytes.data());
  out_.put_result(result);
  static run_list words;
  words = {};
  for (long i = 0; i < pages && result == 0; i++) {
    char word[8];
    std::snprintf(word, sizeof word, "%02x", static_cast<unsigned>(static_cast<unsigned char>(bytes.data()[i])));
    run_list_add(&words, word);
  }
  out_.put_list(words);
}

void Replayer::raw_command(const Operation& operation) {
  constexpr long kBufferPages = 512;
  constexpr std::uint64_t kUntouchedCpages = 777, kUntouchedFaults = 888;
  Buffer writable(kBufferPages);
  Buffer read_only(kBufferPages);
  mprotect(read_only.data(), bytes_of(kBufferPages), PROT_READ);
  const RawAddress& at = operation.raw_address;
  dmirror_command block{.addr = at.absolute ? at.value : as_word(window_page(0)) + at.value,
                        .ptr = as_word(writable.data()),
                        .npages = operation.raw_pages,
                        .cpages = kUntouchedCpages,
                        .faults = kUntouchedFaults};
  if (operation.raw_pointer == RawPointer::kReadOnly) block.ptr = as_word(read_only.data());
  if (operation.raw_pointer == RawPointer::kNull) block.ptr = 0;
  const bool no_block = operation.raw_pointer == RawPointer::kNoBlock;
  out_.put_result(ioctl(handles_[static_cast<std::size_t>(operation.number[1])], DMIRROR_REQUEST(operation.number[2]),
                        no_block ? nullptr : &block));
  if (block.cpages == kUntouchedCpages && block.faults == kUntouchedFaults) {
    out_.put(" block untouched");
  } else {
    put_counts(out_, block);
  }
}

// The commands that carry page contents.
void Replayer::move_data(const Operation& operation) {
  const long first = operation.number[2];
  const long pages = operation.number[3];
  const bool writing = operation.verb == Verb::kDeviceWrite;
  const dmirror_nr nr = writing                               ? DMIRROR_WRITE
                        : operation.verb == Verb::kToDevice   ? DMIRROR_MIGRATE_TO_DEV
                        : operation.verb == Verb::kDeviceRead ? DMIRROR_READ
                                                              : DMIRROR_EXCLUSIVE;
  Buffer data(pages);
  if (writing) {
    for (long i = 0; i < pages; i++) {
      page_stamp(data.data() + bytes_of(i), static_cast<unsigned>(operation.number[4]), first + i);
    }
  }
  dmirror_command block;
  const int result = command(handles_[static_cast<std::size_t>(operation.number[1])], nr, block, first,
                             static_cast<std::uint64_t>(pages), data.data());
  out_.put_result(result);
  if (result < 0) return;
  put_counts(out_, block);
  if (writing) return;
  static run_list words;
  words = {};
  describe_pages(data.data(), first, pages, words);
  out_.put(" :");
  out_.put_list(words);
}

void Replayer::plain_command(const Operation& operation) {
  const int handle = handles_[static_cast<std::size_t>(operation.number[1])];
  dmirror_command block;
  int result = 0;
  switch (operation.verb) {
    case Verb::kToSystem:
    case Verb::kCheckExclusive:
      result = command(handle, operation.verb == Verb::kToSystem ? DMIRROR_MIGRATE_TO_SYS : DMIRROR_CHECK_EXCLUSIVE,
                       block, operation.number[2], static_cast<std::uint64_t>(operation.number[3]), nullptr);
      break;
    case Verb::kRelease:
      result = command(handle, DMIRROR_RELEASE, block, 0, 1, nullptr);
      break;
    case Verb::kFail:
      result = command(handle, DMIRROR_FLAGS, block, 0, DMIRROR_FLAG_FAIL_ALLOC, nullptr);
      break;
    default:
      result = command(handle, DMIRROR_FLAGS, block, 0, static_cast<std::uint64_t>(operation.number[2]), nullptr);
      break;
  }
  out_.put_result(result);
  if (result == 0) put_counts(out_, block);
}

}  // namespace vectors
