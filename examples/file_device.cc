// A new device is one class: here pages live in a file. whimbrel::Driver does the rest.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

#include "whimbrel/driver.hpp"

// Pages in an unlinked file: page n at offset n * 4096. Thread-safe, since pread and pwrite are.
class FileDevice {
 public:
  FileDevice(const char* directory, std::uint64_t pages) : fd_(open(directory, O_TMPFILE | O_RDWR, 0600)), pages_(pages) {}
  ~FileDevice() { close(fd_); }
  FileDevice(const FileDevice&) = delete;
  FileDevice& operator=(const FileDevice&) = delete;

  [[nodiscard]] std::uint64_t pages() const { return fd_ < 0 ? 0 : pages_; }
  bool store(std::uint64_t page, std::size_t count, const std::byte* from) {
    const auto bytes = static_cast<ssize_t>(count * PAGE_SIZE);
    return pwrite(fd_, from, count * PAGE_SIZE, static_cast<off_t>(page * PAGE_SIZE)) == bytes;
  }
  bool load(std::uint64_t page, std::size_t count, std::byte* to) {
    const auto bytes = static_cast<ssize_t>(count * PAGE_SIZE);
    return pread(fd_, to, count * PAGE_SIZE, static_cast<off_t>(page * PAGE_SIZE)) == bytes;
  }

 private:
  int fd_;
  std::uint64_t pages_;
};

int main(int argc, char** argv) {
  constexpr std::size_t kBytes = 32 << 20;
  auto* data = static_cast<unsigned*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  const std::span<unsigned> words(data, kBytes / sizeof(unsigned));
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = static_cast<unsigned>(i * 2654435761u);

  FileDevice device(argc > 1 ? argv[1] : "/tmp", 16384);
  auto space = whimbrel::Space::start();
  if (!space || space->manage(data, kBytes) != 0) {
    std::fprintf(stderr, "%s\n", whimbrel_error());
    return 1;
  }
  int failed = 0;
  {
    auto driver = whimbrel::Driver<FileDevice>::create(*space, device);
    if (!driver) {
      std::fprintf(stderr, "%s\n", whimbrel_error());
      return 1;
    }
    const auto sent = (*driver)->populate(data, kBytes);
    if (!sent || !sent->complete()) failed = 1;

    std::size_t wrong = 0;
    for (std::size_t i = 0; i < words.size(); ++i) wrong += words[i] != static_cast<unsigned>(i * 2654435761u);
    const auto& stats = (*driver)->stats();
    std::printf("%zu MiB into a file and back: %llu pages stored, %llu loaded by %llu faults, %zu words wrong\n",
                kBytes >> 20, static_cast<unsigned long long>(stats.stored), static_cast<unsigned long long>(stats.loaded),
                static_cast<unsigned long long>(stats.faults), wrong);
    if (wrong != 0 || stats.stored != kBytes / PAGE_SIZE || stats.loaded != stats.stored || stats.faults == 0) failed = 1;
  }
  if (space->leave(data, kBytes) != 0) failed = 1;
  return failed;
}
