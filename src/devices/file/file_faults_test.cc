// What can happen to a file device: disks that fill up, fail or shrink, files that change behind its back, kernels and
// filters that deny what it would like to use. Nothing stored before may be lost, and every error has a type.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <vector>

#include "devices/file/file_device.h"
#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DeviceSuite);  // its helpers serve here

constexpr std::uint32_t kUnit = 16;

class FileFaults : public ::testing::Test {
 protected:
  FileFaults() {
    EXPECT_NE(::mkdtemp(directory_.data()), nullptr);
    options_.path = directory_.c_str();
  }
  ~FileFaults() override {
    device_.reset();
    for (const std::string& command : undo_) (void)!std::system(command.c_str());
    std::filesystem::remove_all(directory_);
  }

  void make() {
    device_.reset();
    const Result<FileDevice*> made = FileDevice::create(memory_, options_);
    ASSERT_TRUE(made.has_value()) << made.error().where << ", errno " << made.error().sys;
    file_ = *made;
    device_ = DevicePtr(*made, [this](Device* d) { destroy_from(memory_, static_cast<FileDevice*>(d)); });
  }
  Result<DeviceSlot> put(std::uint64_t seed) {
    Pages contents(kUnit);
    fill_pages(Contents::kRandom, seed, contents.bytes());
    const Result<DeviceSlot> slot = device_->reserve(kUnit);
    if (!slot) return slot;
    if (const Result<void> stored = store(*device_, *slot, kUnit, contents.data()); !stored) {
      device_->release(*slot, kUnit);
      return std::unexpected(stored.error());
    }
    return slot;
  }
  bool holds(DeviceSlot slot, std::uint64_t seed) {
    Pages contents(kUnit), back(kUnit);
    fill_pages(Contents::kRandom, seed, contents.bytes());
    return load(*device_, slot, kUnit, back.data()).has_value() &&
           std::memcmp(back.data(), contents.data(), kUnit * kPageBytes) == 0;
  }
  // Stores until that fails; everything stored before must be there, and what is given back usable again.
  Error fill_up() {
    std::vector<DeviceSlot> slots;
    Error error;
    for (std::uint64_t i = 0; i < 4096; ++i) {
      const Result<DeviceSlot> slot = put(i);
      if (!slot) {
        error = slot.error();
        break;
      }
      slots.push_back(*slot);
    }
    EXPECT_GE(slots.size(), 4u);
    for (std::size_t i = 0; i < slots.size(); ++i) EXPECT_TRUE(holds(slots[i], i)) << i;
    for (std::size_t i = 0; i < slots.size() / 2; ++i) device_->release(slots[i], kUnit);
    while (device_->maintain(1 << 20)) {
    }
    const Result<DeviceSlot> again = put(9000);
    EXPECT_TRUE(again.has_value()) << "room that was given back";
    EXPECT_TRUE(again && holds(*again, 9000));
    for (std::size_t i = slots.size() / 2; i < slots.size(); ++i) EXPECT_TRUE(holds(slots[i], i)) << i;
    return error;
  }
  // A command that needs rights; false when it cannot be done here.
  bool can(const std::string& command, const std::string& undo) {
    if (std::system(("(" + command + ") >/dev/null 2>&1").c_str()) != 0) return false;
    undo_.insert(undo_.begin(), "(" + undo + ") >/dev/null 2>&1");
    return true;
  }
  // A loop device over a file of so many MiB; empty when that cannot be had.
  std::string loop_device(int mebibytes) {
    const std::string image = directory_ + "/image", name = directory_ + "/loop";
    const std::string make_it =
        "truncate -s " + std::to_string(mebibytes) + "M " + image + " && losetup --show -f " + image + " > " + name;
    if (!can(make_it, "losetup -d $(cat " + name + ")")) return "";
    std::string path;
    std::ifstream(name) >> path;
    return path;
  }

  std::string directory_ = "/var/tmp/whimbrel-faults-XXXXXX";
  TestMemory memory_;
  FileDevice::Options options_;
  FileDevice* file_ = nullptr;
  DevicePtr device_{nullptr, [](Device*) {}};
  std::vector<std::string> undo_;
};

// --- encryption -----------------------------------------------------------------------------------------------------

class Encrypted : public FileFaults, public ::testing::WithParamInterface<CodecId> {
 protected:
  void SetUp() override {
    if (!ExtentCipher::is_possible()) GTEST_SKIP() << "this processor has no AES instructions";
    options_.direct = DirectIo::kOff;  // so that it can be read here
    options_.codec = GetParam();
  }
  // What is in the file, from one end to the other.
  std::string on_disk() {
    std::string bytes;
    std::vector<char> buffer(1 << 20);
    const int fd = file_->descriptor();
    for (off_t at = ::lseek(fd, 0, SEEK_DATA); at >= 0; at = ::lseek(fd, at, SEEK_DATA)) {
      const ssize_t n = ::pread(fd, buffer.data(), buffer.size(), at);
      if (n <= 0) break;
      bytes.append(buffer.data(), static_cast<std::size_t>(n));
      at += n;
    }
    return bytes;
  }
  // A unit in which every page has the secret, and noise besides, so that it is neither filled nor compressed away.
  DeviceSlot put_secret() {
    Pages pages(kUnit);
    fill_pages(Contents::kRandom, 1, pages.bytes());
    for (std::uint32_t i = 0; i < kUnit; ++i) std::memcpy(pages.page(i) + 100 * i, secret_.data(), secret_.size());
    const DeviceSlot slot = device_->reserve(kUnit).value();
    EXPECT_TRUE(store(*device_, slot, kUnit, pages.data()).has_value());
    Pages back(kUnit);
    EXPECT_TRUE(load(*device_, slot, kUnit, back.data()).has_value());
    EXPECT_EQ(std::memcmp(back.data(), pages.data(), kUnit * kPageBytes), 0);
    return slot;
  }
  static std::size_t count(const std::string& text, const std::string& what) {
    std::size_t n = 0;
    for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
  }
  const std::string secret_ = "this must never be found on a disk that somebody throws away";
};

TEST_P(Encrypted, WhatIsStoredCannotBeFoundInTheFile) {
  make();
  put_secret();
  EXPECT_EQ(count(on_disk(), secret_), kUnit) << "the search itself";
  options_.encrypt = true;
  make();
  put_secret();
  const std::string bytes = on_disk();
  EXPECT_GE(bytes.size(), kUnit * kPageBytes);
  EXPECT_EQ(count(bytes, secret_), 0u);
  EXPECT_EQ(count(bytes, secret_.substr(0, 12)), 0u);
}

TEST_P(Encrypted, TheSameContentsNeverLookTheSame) {
  options_.encrypt = true;
  make();
  put_secret();
  put_secret();
  const std::string bytes = on_disk();
  ASSERT_GE(bytes.size(), 2 * kUnit * kPageBytes);
  for (std::size_t at = 0; at + kPageBytes <= kUnit * kPageBytes; at += kPageBytes) {
    EXPECT_EQ(count(bytes, bytes.substr(at, 32)), 1u) << "block " << at / kPageBytes;
  }
}

TEST_P(Encrypted, AChildHasAKeyOfItsOwn) {
  options_.encrypt = true;
  make();
  const DeviceSlot inherited = put_secret();
  const std::string parents = on_disk();
  device_->prepare_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    device_->after_fork_in_child();
    // Its first store has the number that its parent's had.
    put_secret();
    const std::string own = on_disk();
    Pages back(kUnit);
    const bool good = load(*device_, inherited, kUnit, back.data()).has_value() &&
                      std::memcmp(back.page(3) + 300, secret_.data(), secret_.size()) == 0;
    ::_exit(own.size() < kPageBytes ? 1 : own.substr(0, 32) == parents.substr(0, 32) ? 2 : good ? 0 : 3);
  }
  device_->after_fork_in_parent();
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_P(Encrypted, AFlippedByteIsATypedError) {
  options_.encrypt = true;
  make();
  const DeviceSlot slot = put_secret();
  const int fd = file_->descriptor();
  const off_t at = ::lseek(fd, 0, SEEK_DATA) + 5 * static_cast<off_t>(kPageBytes) + 77;
  char byte = 0;
  ASSERT_EQ(::pread(fd, &byte, 1, at), 1);
  byte = static_cast<char>(byte ^ 1);
  ASSERT_EQ(::pwrite(fd, &byte, 1, at), 1);
  Pages back(kUnit);
  const Result<void> result = load(*device_, slot, kUnit, back.data());
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::kCorrupt);
  // Its neighbours are not affected, and it is there again when the byte is.
  EXPECT_TRUE(load(*device_, slot + 4, 1, back.data()).has_value());
  byte = static_cast<char>(byte ^ 1);
  ASSERT_EQ(::pwrite(fd, &byte, 1, at), 1);
  EXPECT_TRUE(load(*device_, slot, kUnit, back.data()).has_value());
}

INSTANTIATE_TEST_SUITE_P(Codecs, Encrypted, ::testing::Values(CodecId::kRaw, CodecId::kZstd),
                         [](const auto& codec) { return std::string(codec_name(codec.param)); });

// --- full -----------------------------------------------------------------------------------------------------------

TEST_F(FileFaults, ALimitOnFileSizesIsAFullDevice) {
  make();
  ::signal(SIGXFSZ, SIG_IGN);  // engine threads have all signals blocked
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{4 << 20, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Error error = fill_up();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(error.code, Errc::kDeviceFull);
  EXPECT_EQ(error.sys, EFBIG);
  EXPECT_EQ(device_->last_error().sys, EFBIG);
}

TEST_F(FileFaults, AFullDiskIsAFullDevice) {
  if (!can("mount -t tmpfs -o size=8M none " + directory_, "umount " + directory_)) {
    GTEST_SKIP() << "may not mount a small file system";
  }
  for (const bool ring : {true, false}) {
    options_.ring = ring;
    make();
    const Error error = fill_up();
    EXPECT_EQ(error.code, Errc::kDeviceFull);
    EXPECT_EQ(error.sys, ENOSPC);
  }
}

TEST_F(FileFaults, FullInTheMiddleOfABatchFailsThoseThatDoNotFit) {
  options_.size_bytes = 1 << 20;  // 16 units
  make();
  constexpr std::size_t kUnits = 24;
  Pages contents(kUnits * kUnit);
  fill_pages(Contents::kRandom, 1, contents.bytes());
  std::vector<DeviceOp> ops;
  for (std::size_t i = 0; i < kUnits; ++i) {
    ops.push_back({.kind = DeviceOp::Kind::kStore,
                   .first = device_->reserve(kUnit).value(),
                   .pages = kUnit,
                   .memory = contents.page(i * kUnit)});
  }
  DeviceBatch batch{.ops = ops};
  device_->submit(batch);
  device_->wait(batch);
  std::size_t stored = 0;
  for (std::size_t i = 0; i < kUnits; ++i) {
    Pages back(kUnit);
    const Result<void> loaded = load(*device_, ops[i].first, kUnit, back.data());
    EXPECT_EQ(loaded.has_value(), ops[i].result.has_value());
    if (!loaded) continue;
    ++stored;
    EXPECT_EQ(std::memcmp(back.data(), contents.page(i * kUnit), kUnit * kPageBytes), 0);
  }
  EXPECT_EQ(stored, 16u);
}

// --- failing --------------------------------------------------------------------------------------------------------

TEST_F(FileFaults, AFileThatWasCutOffIsAnErrorForWhatIsMissing) {
  make();
  const DeviceSlot first = put(1).value(), second = put(2).value();
  ASSERT_EQ(::ftruncate(file_->descriptor(), kUnit * kPageBytes), 0);
  EXPECT_TRUE(holds(first, 1));
  Pages back(kUnit);
  const Result<void> lost = load(*device_, second, kUnit, back.data());
  ASSERT_FALSE(lost.has_value());
  EXPECT_EQ(lost.error().code, Errc::kDeviceIo);
  EXPECT_STREQ(device_->last_error().where, "the file ends early");
  const DeviceSlot third = put(3).value();
  EXPECT_TRUE(holds(third, 3)) << "it goes on working";
}

TEST_F(FileFaults, ADeviceThatFailsIsATypedError) {
  const std::string loop = loop_device(16);
  if (loop.empty()) GTEST_SKIP() << "may not make a loop device";
  options_.path = loop.c_str();
  make();
  const DeviceSlot slot = put(1).value();
  ASSERT_TRUE(holds(slot, 1));
  // The disk loses what is under it.
  ASSERT_EQ(std::system(("truncate -s 0 " + directory_ + "/image && losetup -c " + loop).c_str()), 0);
  const Result<DeviceSlot> failed = put(2);
  if (!failed) {
    EXPECT_TRUE(failed.error().code == Errc::kDeviceIo || failed.error().code == Errc::kDeviceFull);
    EXPECT_NE(failed.error().sys, 0);
  }
  Pages back(kUnit);
  const Result<void> lost = load(*device_, slot, kUnit, back.data());
  ASSERT_FALSE(lost.has_value());
  EXPECT_TRUE(lost.error().code == Errc::kDeviceIo || lost.error().code == Errc::kCorrupt);
  EXPECT_GE(device_->stats().errors, 1u);
}

// A whole and valid page, but of another time: a disk that lost a write shows exactly that.
TEST_F(FileFaults, BlocksThatChangedPlacesAreNoticed) {
  for (const CodecId codec : {CodecId::kRaw, CodecId::kZstd}) {
    options_.codec = codec;
    make();
    Pages text(kUnit), back(kUnit);
    DeviceSlot slots[2];
    for (std::uint64_t i = 0; i < 2; ++i) {
      slots[i] = device_->reserve(kUnit).value();
      fill_pages(Contents::kText, i, text.bytes());
      ASSERT_TRUE(store(*device_, slots[i], kUnit, text.data()));
    }
    const int fd = file_->descriptor();
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_DIRECT);
    const auto used = static_cast<off_t>(device_->stats().held_bytes) / 2;
    std::vector<char> first(4096), second(4096);
    ASSERT_EQ(::pread(fd, first.data(), 4096, 0), 4096);
    ASSERT_EQ(::pread(fd, second.data(), 4096, used), 4096);
    ASSERT_EQ(::pwrite(fd, first.data(), 4096, used), 4096);
    ASSERT_EQ(::pwrite(fd, second.data(), 4096, 0), 4096);
    for (const DeviceSlot slot : slots) {
      EXPECT_EQ(load(*device_, slot, 1, back.data()).error().code, Errc::kCorrupt);
      if (codec == CodecId::kRaw) {
        EXPECT_TRUE(load(*device_, slot + 1, kUnit - 1, back.data()).has_value()) << "the neighbours are whole";
      }
    }
  }
}

// --- what may be denied ---------------------------------------------------------------------------------------------

// From now on these system calls fail for this process, as where an administrator denies them.
void deny(std::initializer_list<unsigned> calls) {
  std::vector<sock_filter> program = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (const unsigned call : calls) {
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
    ::_exit(77);
  }
}

// Runs in a child, which may ruin itself; true when it returns true.
bool in_child(const std::function<bool()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body() && !::testing::Test::HasFailure() ? 0 : 1);
  int status = -1;
  ::waitpid(pid, &status, 0);
  EXPECT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) == 77) << "seccomp filters cannot be set here";
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST_F(FileFaults, WithoutRingsTransfersGoByPreadAndPwrite) {
  EXPECT_TRUE(in_child([&] {
    deny({SYS_io_uring_setup});
    make();
    if (file_->uses_ring()) return false;
    for (std::uint64_t i = 0; i < 20; ++i) {
      const Result<DeviceSlot> slot = put(i);
      if (!slot || !holds(*slot, i)) return false;
    }
    return true;
  }));
}

// A program that filters its system calls later on takes the ring away from under the device.
TEST_F(FileFaults, ARingThatIsTakenAwayIsReplaced) {
  EXPECT_TRUE(in_child([&] {
    make();
    if (!file_->uses_ring()) return true;
    const Result<DeviceSlot> early = put(1);
    deny({SYS_io_uring_enter, SYS_io_uring_setup});
    if (!early || !holds(*early, 1)) return false;
    Pages contents(64 * kUnit), back(64 * kUnit);
    fill_pages(Contents::kRandom, 5, contents.bytes());
    std::vector<DeviceOp> ops;
    for (std::size_t i = 0; i < 64; ++i) {
      ops.push_back({.kind = DeviceOp::Kind::kStore,
                     .first = device_->reserve(kUnit).value(),
                     .pages = kUnit,
                     .memory = contents.page(i * kUnit)});
    }
    for (const auto kind : {DeviceOp::Kind::kStore, DeviceOp::Kind::kLoad}) {
      for (std::size_t i = 0; i < 64; ++i) {
        ops[i].kind = kind;
        if (kind == DeviceOp::Kind::kLoad) ops[i].memory = back.page(i * kUnit);
      }
      DeviceBatch batch{.ops = ops};
      device_->submit(batch);
      for (const DeviceOp& op : ops) {
        if (!op.result) return false;
      }
    }
    return std::memcmp(contents.data(), back.data(), contents.count() * kPageBytes) == 0;
  }));
}

TEST_F(FileFaults, AFileSystemWithoutDirectTransfersIsUsedThroughThePageCache) {
  if (!can("mount -t ramfs none " + directory_, "umount " + directory_)) GTEST_SKIP() << "may not mount ramfs";
  make();
  if (file_->is_direct()) GTEST_SKIP() << "this kernel's ramfs takes direct transfers";
  const DeviceSlot slot = put(1).value();
  EXPECT_TRUE(holds(slot, 1));
  device_.reset();
  options_.direct = DirectIo::kOn;
  const Result<FileDevice*> refused = FileDevice::create(memory_, options_);
  ASSERT_FALSE(refused.has_value());
  EXPECT_STREQ(refused.error().where, "lies on a file system without direct=on");
  EXPECT_EQ(memory_.bytes_in_use(), 0u);
}

// Forks with the device's hooks; true when the child finds the unit there.
bool child_has(Device& device, const std::function<bool()>& holds_it) {
  device.prepare_fork();
  const pid_t pid = ::fork();
  if (pid == 0) {
    device.after_fork_in_child();
    ::_exit(holds_it() && device.stats().stored_pages != 0 ? 0 : 1);
  }
  device.after_fork_in_parent();
  int status = -1;
  ::waitpid(pid, &status, 0);
  return status == 0;
}

TEST_F(FileFaults, AProgramWithoutADescriptorLeftCanFork) {
  EXPECT_TRUE(in_child([&] {
    make();
    const DeviceSlot slot = put(1).value();
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 3;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0 || ::dup(0) >= 0) return false;
    return child_has(*device_, [&] { return holds(slot, 1); });
  }));
}

// The file belongs to the user who made it; its child must have it all the same.
TEST_F(FileFaults, AProgramThatGaveUpItsRightsCanFork) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become somebody else";
  EXPECT_TRUE(in_child([&] {
    make();
    const DeviceSlot slot = put(1).value();
    if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) return false;
    if (!child_has(*device_, [&] { return holds(slot, 1); })) return false;
    // Nobody knows how long children have it: its blocks stay as they are.
    device_->release(slot, kUnit);
    device_->maintain(1 << 20);
    return device_->stats().held_bytes >= kUnit * kPageBytes;
  }));
}

// --- what it leaves and takes ---------------------------------------------------------------------------------------

TEST_F(FileFaults, NobodyElseCanOpenTheFile) {
  const std::string name = directory_ + "/store";
  for (const std::string& path : {directory_, name}) {
    options_.path = path.c_str();
    make();
    struct stat info {};
    ASSERT_EQ(::fstat(file_->descriptor(), &info), 0);
    EXPECT_EQ(info.st_nlink, 0u);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    EXPECT_TRUE(std::filesystem::is_empty(directory_));
  }
}

TEST_F(FileFaults, RoomGoesBackToTheFileSystem) {
  make();
  std::vector<DeviceSlot> slots;
  for (std::uint64_t i = 0; i < 64; ++i) slots.push_back(put(i).value());
  struct stat full {
  }, half{}, empty{};
  ASSERT_EQ(::fstat(file_->descriptor(), &full), 0);
  EXPECT_GE(full.st_blocks * 512, 4 << 20);
  for (std::size_t i = 0; i < 64; i += 2) device_->release(slots[i], kUnit);
  while (device_->maintain(1 << 20)) {
  }
  ASSERT_EQ(::fstat(file_->descriptor(), &half), 0);
  EXPECT_LE(half.st_blocks * 512, 3 << 20);
  for (std::size_t i = 1; i < 64; i += 2) {
    EXPECT_TRUE(holds(slots[i], i));
    device_->release(slots[i], kUnit);
  }
  while (device_->maintain(1 << 20)) {
  }
  ASSERT_EQ(::fstat(file_->descriptor(), &empty), 0);
  EXPECT_LE(empty.st_blocks * 512, 64 << 10);
  EXPECT_EQ(device_->stats().held_bytes, 0u);
}

TEST_F(FileFaults, ABlockDeviceIsTakenWithCare) {
  const std::string loop = loop_device(32);
  if (loop.empty()) GTEST_SKIP() << "may not make a loop device";
  options_.path = loop.c_str();
  const auto refusal = [&] {
    const Result<FileDevice*> device = FileDevice::create(memory_, options_);
    if (!device) return std::string(device.error().where);
    destroy_from(memory_, *device);
    return std::string();
  };
  EXPECT_EQ(refusal(), "");
  ASSERT_EQ(std::system(("mkswap " + loop + " >/dev/null 2>&1").c_str()), 0);
  EXPECT_EQ(refusal(), "is a swap area");
  ASSERT_EQ(std::system(("mkfs.ext4 -q -F " + loop + " >/dev/null 2>&1").c_str()), 0);
  EXPECT_EQ(refusal(), "holds an ext2, ext3 or ext4 file system");
  const std::string there = directory_ + "/there";
  std::filesystem::create_directory(there);
  if (can("mount " + loop + " " + there, "umount " + there)) {
    options_.force = true;
    EXPECT_EQ(refusal(), "is mounted, or in use by something else") << "not even when forced";
    ASSERT_EQ(::umount(there.c_str()), 0);
  }
  options_.force = true;
  make();
  EXPECT_EQ(refusal(), "is mounted, or in use by something else") << "one at a time";
  const Error error = fill_up();
  EXPECT_EQ(error.code, Errc::kDeviceFull);
}

TEST_F(FileFaults, AChildCannotStoreOnItsParentsBlockDeviceButReadsIt) {
  const std::string loop = loop_device(16);
  if (loop.empty()) GTEST_SKIP() << "may not make a loop device";
  options_.path = loop.c_str();
  make();
  const DeviceSlot slot = put(1).value();
  device_->prepare_fork();
  const pid_t pid = ::fork();
  if (pid == 0) {
    device_->after_fork_in_child();
    if (!holds(slot, 1)) ::_exit(1);
    const Result<DeviceSlot> own = put(2);
    ::_exit(!own && own.error().code == Errc::kDeviceFull && holds(slot, 1) ? 0 : 2);
  }
  device_->after_fork_in_parent();
  int status = -1;
  ::waitpid(pid, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(put(3).has_value());
  EXPECT_TRUE(holds(slot, 1));
}

}  // namespace
}  // namespace whimbrel::testing
