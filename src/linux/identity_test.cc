// Identities: taken apart, and taken on by a thread of a process of its own.
#include "linux/identity.h"

#include <grp.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "linux/confine_test.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

const char kStatus[] =
    "Name:\tUid: 7\nState:\tS (sleeping)\nUid:\t1000\t1001\t1002\t1003\nGid:\t20\t21\t22\t23\nGroups:\t4 24 4294967294 \n"
    "CapInh:\t0000000000000001\nCapPrm:\t000001ffffffffff\nCapEff:\t00000000000000f0\nNoNewPrivs:\t1\n";

TEST(Identity, IsReadFromTheKernelsReport) {
  Identity id;
  ASSERT_TRUE(Identity::parse(kStatus, sizeof kStatus - 1, id));
  EXPECT_EQ(id.users[0], 1000u);
  EXPECT_EQ(id.users[2], 1002u);
  EXPECT_EQ(id.groups[1], 21u);
  ASSERT_EQ(id.other_count, 3u);
  EXPECT_EQ(id.others[2], 4294967294u);
  EXPECT_EQ(id.inheritable, 1u);
  EXPECT_EQ(id.permitted, 0x1ffffffffffu);
  EXPECT_EQ(id.effective, 0xf0u);
  EXPECT_TRUE(id.no_new_privileges);
  EXPECT_TRUE(id.all_others);
}

TEST(Identity, IncompleteReportsAndDeadThreadsAreNone) {
  std::string text = kStatus;
  Identity id;
  text.replace(text.find("S (sleeping)"), 1, "Z");
  EXPECT_FALSE(Identity::parse(text.c_str(), text.size(), id)) << "what a dead thread was does not count";
  for (const char* line : {"Uid:\t1", "Gid:", "Groups:", "CapPrm:", "CapEff:"}) {
    text = kStatus;
    text.replace(text.find(std::string("\n") + line), 2, "\nx");
    EXPECT_FALSE(Identity::parse(text.c_str(), text.size(), id)) << line;
  }
}

TEST(Identity, ManyGroupsAreCutOff) {
  std::string groups = "Groups:\t";
  for (int i = 0; i < 1500; ++i) groups += std::to_string(i) + " ";
  std::string text = kStatus;
  text.replace(text.find("Groups:"), std::strlen("Groups:\t4 24 4294967294 "), groups);
  Identity id;
  ASSERT_TRUE(Identity::parse(text.c_str(), text.size(), id));
  EXPECT_FALSE(id.all_others);
  EXPECT_EQ(id.other_count, Identity::kMostGroups);
}

TEST(Identity, ThatOfThisThreadIsWhatTheSystemCallsSay) {
  Identity id;
  ASSERT_TRUE(Identity::of_thread(sys::gettid(), id));
  EXPECT_EQ(id.users[1], geteuid());
  EXPECT_EQ(id.groups[0], getgid());
  EXPECT_EQ(static_cast<int>(id.other_count), getgroups(0, nullptr));
  EXPECT_FALSE(Identity::of_thread(1 << 30, id).has_value());
}

// The steps a program takes, each followed by way of the report.
int follow() {
  Identity start, now;
  if (!Identity::of_thread(sys::gettid(), start)) return 1;
  Identity low = start;
  low.users[1] = 4000;  // for a while only
  low.effective = 0;
  if (!low.adopt() || geteuid() != 4000) return 2;
  if (!start.adopt() || geteuid() != 0) return 3;
  if (!Identity::of_thread(sys::gettid(), now) || !now.same_as(start)) return 4;
  low = start;
  for (std::uint32_t& user : low.users) user = 4000;
  for (std::uint32_t& group : low.groups) group = 4001;
  low.other_count = 2;
  low.others[0] = 4001;
  low.others[1] = 4005;
  low.permitted = low.effective = 1 << 10;  // one capability is kept beside another user
  low.inheritable = 0;
  if (!low.adopt()) return 5;
  if (!Identity::of_thread(sys::gettid(), now) || !now.same_as(low)) return 6;
  low.permitted = low.effective = 0;
  low.no_new_privileges = true;
  if (!low.adopt()) return 7;
  if (!Identity::of_thread(sys::gettid(), now) || !now.same_as(low)) return 8;
  return start.adopt().has_value() ? 9 : 0;  // no way back
}

TEST(Identity, IsTakenOnExactly) {
  if (geteuid() != 0) GTEST_SKIP() << "changing the user needs root";
  EXPECT_EQ(test::in_child(follow), 0);
}

}  // namespace
}  // namespace whimbrel
