#include "linux/proc_maps.h"

#include <cerrno>
#include <cstring>

#include "linux/sys.h"

namespace whimbrel {
namespace {

struct Cursor {
  const char* at;
  const char* end;

  bool number(unsigned base, std::uint64_t& out) noexcept {
    const char* const start = at;
    out = 0;
    for (; at < end; ++at) {
      unsigned digit = 0;
      if (*at >= '0' && *at <= '9') {
        digit = static_cast<unsigned>(*at - '0');
      } else if (base == 16 && *at >= 'a' && *at <= 'f') {
        digit = static_cast<unsigned>(*at - 'a') + 10;
      } else {
        break;
      }
      out = out * base + digit;
    }
    return at > start;
  }
  bool skip(char c) noexcept {
    if (at >= end || *at != c) return false;
    ++at;
    return true;
  }
};

struct FlagCode {
  char code[3];
  std::uint32_t flag;
};
constexpr FlagCode kFlagCodes[] = {
    {"sh", Mapping::kShared},      {"lo", Mapping::kLocked},     {"io", Mapping::kSpecial},
    {"pf", Mapping::kSpecial},     {"mm", Mapping::kSpecial},    {"de", Mapping::kSpecial},
    {"ht", Mapping::kHugetlb},     {"wf", Mapping::kWipeOnFork}, {"dc", Mapping::kDontFork},
    {"hg", Mapping::kHugeAdvised}, {"nh", Mapping::kNoHuge},     {"um", Mapping::kWatchedMissing},
};

}  // namespace

std::uint32_t flags_of_name(std::string_view name) noexcept {
  if (name == "[heap]") return Mapping::kHeap;
  if (name == "[stack]") return Mapping::kStack;
  if (name == "[vdso]" || name.starts_with("[vvar") || name == "[vsyscall]" || name == "[uprobes]") {
    return Mapping::kKernelOwned;
  }
  return 0;
}

bool parse_mapping_line(std::string_view line, Mapping& out) noexcept {
  Cursor in{line.data(), line.data() + line.size()};
  std::uint64_t start = 0, end = 0, offset = 0, major = 0, minor = 0, inode = 0;
  if (!in.number(16, start) || !in.skip('-') || !in.number(16, end) || !in.skip(' ')) return false;
  if (in.end - in.at < 5) return false;
  const char* const permissions = in.at;
  in.at += 4;
  if (!in.skip(' ') || !in.number(16, offset) || !in.skip(' ') || !in.number(16, major) || !in.skip(':') ||
      !in.number(16, minor) || !in.skip(' ') || !in.number(10, inode)) {
    return false;
  }
  while (in.skip(' ')) {
  }
  const std::string_view name(in.at, static_cast<std::size_t>(in.end - in.at));
  std::uint32_t flags = Mapping::kFlagsUnknown | flags_of_name(name);
  if (permissions[0] == 'r') flags |= Mapping::kReadable;
  if (permissions[1] == 'w') flags |= Mapping::kWritable;
  if (permissions[2] == 'x') flags |= Mapping::kExecutable;
  if (permissions[3] == 's') flags |= Mapping::kShared;
  if (inode != 0 || name.starts_with('/')) flags |= Mapping::kFileBacked;
  out = Mapping{{PageIndex::of(VirtualAddress(start)), PageCount((end - start) / kPageSize)}, flags, 0, inode};
  if ((flags & Mapping::kFileBacked) != 0) out.file_offset = offset;
  return true;
}

bool parse_vm_flags(std::string_view line, Mapping& out) noexcept {
  constexpr std::string_view kKey = "VmFlags:";
  if (!line.starts_with(kKey)) return false;
  line.remove_prefix(kKey.size());
  while (line.size() >= 2) {
    if (line.front() == ' ') {
      line.remove_prefix(1);
      continue;
    }
    for (const FlagCode& known : kFlagCodes) {
      if (line[0] == known.code[0] && line[1] == known.code[1]) out.flags |= known.flag;
    }
    line.remove_prefix(2);
  }
  out.flags &= ~std::uint32_t{Mapping::kFlagsUnknown};
  return true;
}

bool LineReader::fill() noexcept {
  if (begin_ > 0) {
    std::memmove(buffer_, buffer_ + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  for (;;) {
    const Result<std::size_t> got = sys::pread(fd_, buffer_ + end_, sizeof buffer_ - end_, offset_);
    if (!got) {
      if (got.error().sys == EINTR) continue;
      failed_ = true;
      error_ = got.error();
      return false;
    }
    if (*got == 0) at_end_ = true;
    end_ += *got;
    offset_ += *got;
    return *got > 0;
  }
}

bool LineReader::next(std::string_view& line) noexcept {
  for (;;) {
    const char* const start = buffer_ + begin_;
    const auto* const newline = static_cast<const char*>(std::memchr(start, '\n', end_ - begin_));
    if (newline != nullptr) {
      begin_ = static_cast<std::size_t>(newline - buffer_) + 1;
      if (skipping_) {
        skipping_ = false;
        continue;
      }
      line = {start, static_cast<std::size_t>(newline - start)};
      return true;
    }
    if (end_ - begin_ == sizeof buffer_) {  // no newline in a full buffer
      const bool continued = skipping_;
      begin_ = end_;
      skipping_ = true;
      if (continued) continue;
      line = {buffer_, sizeof buffer_};
      return true;
    }
    if (at_end_ || failed_ || !fill()) return false;
  }
}

}  // namespace whimbrel
