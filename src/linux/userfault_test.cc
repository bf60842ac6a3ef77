#include "linux/userfault.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>

#include "linux/confine_test.h"
#include "linux/uapi.h"

namespace whimbrel {
namespace {

TEST(Proof, EveryRungWorksForRoot) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  for (const Rung rung : kRungs) {
    SCOPED_TRACE(rung_name(rung));
    const auto start = std::chrono::steady_clock::now();
    const Proof proof = prove(rung, {});
    const auto took = std::chrono::steady_clock::now() - start;
    EXPECT_TRUE(proof.serves()) << proof.failure.where << " " << proof.failure.sys;
    EXPECT_TRUE(proof.move && proof.copy && proof.poison && proof.write_protect);
    EXPECT_EQ(proof.kernel_faults, rung != Rung::kUserModeOnly);
    EXPECT_LT(took, std::chrono::milliseconds(900)) << "something was waited for in vain";
  }
}

TEST(Proof, AsynchronousWriteProtectionIsGranted) {
  const Proof proof = prove(Rung::kUserModeOnly, {.write_protect_async = true});
  EXPECT_TRUE(proof.serves());
  EXPECT_TRUE(proof.write_protect);
  EXPECT_TRUE(proof.features & uapi::kFeatureWpAsync);
}

TEST(Proof, OrdinaryUserGetsUserModeOnly) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  if (test::sysctl_number("/proc/sys/vm/unprivileged_userfaultfd") != 0) {
    GTEST_SKIP() << "vm.unprivileged_userfaultfd is not 0";
  }
  EXPECT_EQ(test::in_child([] {
              test::become_nobody();
              const Proof plain = prove(Rung::kSystemCall, {});
              if (plain.opened || plain.failure.code != Errc::kNotPermitted) return 1;
              const Proof device = prove(Rung::kDevice, {});
              if (device.opened || device.failure.code != Errc::kNotPermitted) return 2;
              const Proof user = prove(Rung::kUserModeOnly, {});
              if (!user.serves() || !user.move) return 3;
              return user.kernel_faults ? 4 : 0;
            }),
            0);
}

TEST(Proof, DeviceOpenedBeforePrivilegeWasDroppedStillServes) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  EXPECT_EQ(test::in_child([] {
              const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
              if (device < 0) return 77;
              test::become_nobody();
              const Proof proof = prove(Rung::kDevice, {.device_fd = device});
              return proof.serves() && proof.kernel_faults ? 0 : 1;
            }),
            0);
}

TEST(Proof, ForkEventsAreLeftOutWhereRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  const Proof root = prove(Rung::kSystemCall, {.fork_event = true});
  EXPECT_TRUE(root.features & uapi::kFeatureEventFork);
  EXPECT_EQ(test::in_child([] {
              test::become_nobody();
              const Proof user = prove(Rung::kUserModeOnly, {.fork_event = true});
              return user.serves() && (user.features & uapi::kFeatureEventFork) == 0 ? 0 : 1;
            }),
            0);
}

TEST(Proof, FilterThatDeniesMoveIsFoundOutAlthoughTheFeatureIsOffered) {
  EXPECT_EQ(test::in_child([] {
              test::deny_ioctl(uapi::kUffdioMove, EPERM);
              const Proof proof = prove(Rung::kUserModeOnly, {});
              if ((proof.features & uapi::kFeatureMove) == 0) return 1;
              if (proof.move) return 2;
              return proof.serves() && proof.failure.code == Errc::kNotPermitted ? 0 : 3;
            }),
            0);
}

TEST(Proof, FilterOnTheSystemCallLeavesTheDevice) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root for the device";
  EXPECT_EQ(test::in_child([] {
              test::deny_call(SYS_userfaultfd, ENOSYS);
              const Proof plain = prove(Rung::kSystemCall, {});
              if (plain.opened || plain.failure.code != Errc::kNotSupported) return 1;
              return prove(Rung::kDevice, {}).serves() ? 0 : 2;
            }),
            0);
}

TEST(Proof, UnansweredTouchEndsTheProofInsteadOfHangingIt) {
  // COPY denied: the touched page can never be filled.
  EXPECT_EQ(test::in_child([] {
              test::deny_ioctl(UFFDIO_COPY, EPERM);
              const Proof proof = prove(Rung::kUserModeOnly, {});
              return !proof.serves() && !proof.copy && proof.failure.code == Errc::kNotPermitted ? 0 : 1;
            }),
            0);
}

}  // namespace
}  // namespace whimbrel
