#include "linux/probe.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include <fstream>
#include <string>

#include "linux/confine_test.h"
#include "linux/reservation.h"
#include "linux/uapi.h"

namespace whimbrel {
namespace {

class Probe : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(memory_.open({.bytes = 16u << 20})); }
  Reservation memory_;
};

TEST_F(Probe, EveryRowIsFilledAndAFailureNamesItsCure) {
  const ProbeReport report = probe(memory_);
  for (std::size_t i = 0; i < static_cast<std::size_t>(ProbeId::kCount); ++i) {
    const ProbeRow& row = report.rows[i];
    SCOPED_TRACE(row.name);
    EXPECT_EQ(static_cast<std::size_t>(row.id), i);
    EXPECT_STRNE(row.name, "");
    EXPECT_STRNE(row.consequence, "");
    EXPECT_EQ(row.works, row.fix[0] == 0) << row.fix;
  }
  EXPECT_EQ(memory_.bytes_in_use(), 0u);
}

TEST_F(Probe, AgreesWithTheMachine) {
  const ProbeReport report = probe(memory_);
  utsname name{};
  uname(&name);
  EXPECT_STREQ(report[ProbeId::kKernel].detail, name.release);
  EXPECT_EQ(std::atol(report[ProbeId::kUnprivilegedSetting].detail),
            test::sysctl_number("/proc/sys/vm/unprivileged_userfaultfd"));
  EXPECT_EQ(std::atol(report[ProbeId::kMapCount].detail), test::sysctl_number("/proc/sys/vm/max_map_count"));
  EXPECT_EQ(std::atol(report[ProbeId::kOvercommit].detail), test::sysctl_number("/proc/sys/vm/overcommit_memory"));
  std::string setting;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"), setting);
  EXPECT_NE(setting.find("[" + std::string(report[ProbeId::kHugePages].detail) + "]"), std::string::npos) << setting;
  if (report[ProbeId::kKernel].works && geteuid() == 0) {
    EXPECT_TRUE(report.usable());
    EXPECT_EQ(report.ladder.chosen, 0);
    EXPECT_STREQ(report[ProbeId::kRungSystemCall].detail, "used");
    for (const ProbeId id : {ProbeId::kMove, ProbeId::kKernelFaults, ProbeId::kWriteProtect, ProbeId::kPoison,
                             ProbeId::kPagemapScan, ProbeId::kPinCounters}) {
      EXPECT_TRUE(report[id].works) << report[id].name;
    }
  }
}

TEST_F(Probe, OrdinaryUserIsToldWhatToAskFor) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  if (test::sysctl_number("/proc/sys/vm/unprivileged_userfaultfd") != 0) {
    GTEST_SKIP() << "vm.unprivileged_userfaultfd is not 0";
  }
  EXPECT_EQ(test::in_child([&] {
              test::become_nobody();
              const ProbeReport report = probe(memory_);
              if (report.ladder.chosen != 2) return 1;
              const ProbeRow& plain = report[ProbeId::kRungSystemCall];
              if (plain.works || plain.sys != EPERM || std::string(plain.detail) != "not permitted") return 2;
              if (std::string(plain.fix).find("vm.unprivileged_userfaultfd=1") == std::string::npos) return 3;
              if (report[ProbeId::kKernelFaults].works || report[ProbeId::kPinCounters].works) return 4;
              return report[ProbeId::kMove].works ? 0 : 5;
            }),
            0);
}

TEST_F(Probe, SandboxWithoutUserfaultfdLeavesGuardedArenasAndSaysWhy) {
  EXPECT_EQ(test::in_child([&] {
              test::deny_call(SYS_userfaultfd, EPERM);
              test::deny_ioctl(uapi::kDevUserfaultfdNew, EPERM);
              const ProbeReport report = probe(memory_);
              if (report.usable() || report[ProbeId::kMove].works) return 1;
              const ProbeRow& guarded = report[ProbeId::kGuardedArenas];
              if (!report.guarded || !guarded.works || std::string(guarded.detail) != "used") return 3;
              const ProbeRow& user = report[ProbeId::kRungUserMode];
              return !user.works && user.sys == EPERM && std::string(user.fix).find("seccomp") != std::string::npos ? 0
                                                                                                                    : 2;
            }),
            0);
}

TEST_F(Probe, SandboxWithNeitherSaysSo) {
  EXPECT_EQ(test::in_child([&] {
              test::deny_call(SYS_userfaultfd, EPERM);
              test::deny_ioctl(uapi::kDevUserfaultfdNew, EPERM);
              test::deny_advice(MADV_REMOVE, EPERM);
              const ProbeReport report = probe(memory_);
              const ProbeRow& guarded = report[ProbeId::kGuardedArenas];
              if (report.usable() || report.guarded || guarded.works) return 1;
              return guarded.sys == EPERM && std::string(guarded.fix).find("MADV_REMOVE") != std::string::npos ? 0 : 2;
            }),
            0);
}

TEST_F(Probe, FilterOfSingleCallsShowsInTheirRowsAlone) {
  const ProbeReport plain = probe(memory_);
  EXPECT_EQ(test::in_child([&] {
              test::deny_ioctl(uapi::kPagemapScan, ENOTTY);
              test::deny_ioctl(uapi::kProcmapQuery, ENOTTY);
              test::deny_call(440, EINVAL);  // process_madvise
              test::deny_call(SYS_perf_event_open, EACCES);
              const ProbeReport report = probe(memory_);
              for (std::size_t i = 0; i < static_cast<std::size_t>(ProbeId::kCount); ++i) {
                const auto id = static_cast<ProbeId>(i);
                if (id == ProbeId::kHugePages) continue;  // looks through PAGEMAP_SCAN
                const bool denied = id == ProbeId::kPagemapScan || id == ProbeId::kProcmapQuery ||
                                    id == ProbeId::kProcessMadvise || id == ProbeId::kMappingNews;
                if (report[id].works != (plain[id].works && !denied)) return static_cast<int>(i) + 1;
              }
              return 0;
            }),
            0);
}

TEST_F(Probe, LimitsAreReadAsTheyAre) {
  EXPECT_EQ(test::in_child([&] {
              const rlimit files{12, 12};
              if (setrlimit(RLIMIT_NOFILE, &files) != 0) return 1;
              const ProbeReport report = probe(memory_);
              const ProbeRow& row = report[ProbeId::kOpenFiles];
              return !row.works && std::string(row.detail) == "12" ? 0 : 2;
            }),
            0);
}

}  // namespace
}  // namespace whimbrel
