#include "devices/file/file_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

// A directory of this test process's own, gone at its end.
const std::string& scratch() {
  static const struct Directory {
    Directory() {
      const char* base = std::getenv("TEST_TMPDIR");
      path = std::string(base != nullptr ? base : "/var/tmp") + "/whimbrel-file-XXXXXX";
      if (::mkdtemp(path.data()) == nullptr) std::abort();
    }
    ~Directory() {
      if (::getpid() == owner) std::filesystem::remove_all(path);
    }
    std::string path;
    pid_t owner = ::getpid();
  } directory;
  return directory.path;
}

std::string names_in(const std::string& directory) {
  std::string names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names += entry.path().filename().string() + " ";
  return names;
}

DevicePtr make(MemorySource& memory, const FileDevice::Options& options) {
  const Result<FileDevice*> device = FileDevice::create(memory, options);
  EXPECT_TRUE(device.has_value()) << device.error().where << " " << device.error().sys;
  return DevicePtr(device ? *device : nullptr,
                   [&memory](Device* d) { destroy_from(memory, static_cast<FileDevice*>(d)); });
}

// Flips a byte of every block that is there.
void damage(Device& device) {
  const int fd = static_cast<FileDevice&>(device).descriptor();
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, flags & ~O_DIRECT);
  struct stat info {};
  ASSERT_EQ(::fstat(fd, &info), 0);
  // The file is long and mostly holes.
  for (off_t at = ::lseek(fd, 0, SEEK_DATA); at >= 0 && at < info.st_size;
       at = ::lseek(fd, at - at % 4096 + 4096, SEEK_DATA)) {
    at = at - at % 4096 + 100;
    char byte = 0;
    ASSERT_EQ(::pread(fd, &byte, 1, at), 1);
    byte = static_cast<char>(byte ^ 0x10);
    ASSERT_EQ(::pwrite(fd, &byte, 1, at), 1);
  }
  ::fsync(fd);
  ::fcntl(fd, F_SETFL, flags);
}

DeviceUnderTest file(std::string name, FileDevice::Options options, bool named = false) {
  return {.name = std::move(name),
          .make =
              [=](MemorySource& memory, std::uint64_t capacity) {
                FileDevice::Options with = options;
                const std::string path = named ? scratch() + "/store" : scratch();
                with.path = path.c_str();
                with.size_bytes = capacity;
                return make(memory, with);
              },
          .keeps_fills_free = true,
          .damage = damage,
          .leftovers = [] { return names_in(scratch()); }};
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
// Sanitizers make the suite five times as slow: the ways that differ in code only.
INSTANTIATE_TEST_SUITE_P(File, DeviceSuite,
                         ::testing::Values(file("direct", {}), file("pread", {.ring = false}),
                                           file("lz4_16K", {.unit_pages = 4, .codec = CodecId::kLz4}),
                                           file("encrypted_zstd", {.codec = CodecId::kZstd, .encrypt = true})),
                         device_name);
#else
INSTANTIATE_TEST_SUITE_P(
    File, DeviceSuite,
    ::testing::Values(file("direct", {}), file("named", {}, true), file("buffered", {.direct = DirectIo::kOff}),
                      file("pread", {.ring = false}), file("pread_buffered", {.direct = DirectIo::kOff, .ring = false}),
                      file("page", {.unit_pages = 1}), file("pages64_depth3", {.unit_pages = 64, .depth = 3}),
                      file("lz4_encrypted", {.codec = CodecId::kLz4, .encrypt = true}),
                      file("encrypted", {.encrypt = true}), file("zstd", {.codec = CodecId::kZstd}),
                      file("zstd_16K_buffered_pread",
                           {.direct = DirectIo::kOff, .ring = false, .unit_pages = 4, .codec = CodecId::kZstd})),
    device_name);
#endif

}  // namespace
}  // namespace whimbrel::testing
