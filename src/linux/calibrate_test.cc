#include "linux/calibrate.h"

#include <gtest/gtest.h>

#include <iostream>

#include "linux/clock.h"
#include "linux/confine_test.h"
#include "linux/reservation.h"
#include "linux/uapi.h"

namespace whimbrel {
namespace {

TEST(Costs, CurveGoesThroughItsPointsAndStraightBetweenThem) {
  const Costs::Curve curve{.one = 100, .run = 730, .huge = 5210};
  EXPECT_EQ(curve.of(PageCount(0)), 0);
  EXPECT_EQ(curve.of(PageCount(1)), 100);
  EXPECT_EQ(curve.of(PageCount(2)), 110);
  EXPECT_EQ(curve.of(PageCount(64)), 730);
  EXPECT_EQ(curve.of(PageCount(65)), 740);
  EXPECT_EQ(curve.of(PageCount(512)), 5210);
  EXPECT_EQ(curve.of(PageCount(1024)), 10330);
  // The cliff of real machines: a run of 64 may cost less than a few single pages; never negative.
  const Costs::Curve cliff{.one = 900, .run = 100, .huge = 50};
  EXPECT_LT(cliff.of(PageCount(64)), cliff.of(PageCount(32)));
  EXPECT_GE(cliff.of(PageCount(100000)), 0);
}

TEST(Calibrate, MeasuresPlausibleCostsInMillisecondsAndLeavesNothing) {
  Reservation memory;
  ASSERT_TRUE(memory.open({.bytes = 16u << 20}));
  const Result<UserfaultMmu*> mmu = UserfaultMmu::create(memory, {});
  ASSERT_TRUE(mmu);
  const std::size_t in_use = memory.bytes_in_use();
  const SystemClock clock;
  const Result<Costs> costs = calibrate(**mmu, clock);
  ASSERT_TRUE(costs) << costs.error().where << " " << costs.error().sys;
  const auto print = [](const char* name, const Costs::Curve& c) {
    std::cout << name << " " << c.one << " " << c.run << " " << c.huge << " ns for 1, 64, 512 pages\n";
  };
  print("move", costs->move);
  print("copy", costs->copy);
  print("discard", costs->discard);
  std::cout << "system call " << costs->system_call << ", deliver " << costs->deliver << ", resume " << costs->resume
            << ", took " << costs->took << " ns\n";
  for (const Costs::Curve* curve : {&costs->move, &costs->copy, &costs->discard}) {
    EXPECT_GT(curve->one, 0);
    EXPECT_GT(curve->huge, curve->one / 2);
    EXPECT_LT(curve->huge / 512, curve->one) << "a page in a run costs less than a page alone";
  }
  EXPECT_GT(costs->system_call, 0);
  EXPECT_GT(costs->deliver, 0);
  EXPECT_GE(costs->fault(PageCount(1)), costs->copy.one);
  EXPECT_LT(costs->took, 2'000'000'000) << "generous: other work may run on this machine";
  EXPECT_EQ(memory.bytes_in_use(), in_use);
  Message message;
  EXPECT_EQ((*mmu)->read_messages({&message, 1}), 0u);
  // Once more on the same object: nothing of the first run is in the way.
  EXPECT_TRUE(calibrate(**mmu, clock));
  UserfaultMmu::destroy(*mmu);
}

TEST(Calibrate, SaysWhyItCannot) {
  EXPECT_EQ(test::in_child([] {
              Reservation memory;
              if (!memory.open({.bytes = 16u << 20})) return 1;
              const Result<UserfaultMmu*> mmu = UserfaultMmu::create(memory, {});
              if (!mmu) return 2;
              test::deny_ioctl(UFFDIO_COPY, EPERM);
              const Result<Costs> costs = calibrate(**mmu, SystemClock());
              return !costs && costs.error().code == Errc::kNotPermitted ? 0 : 3;
            }),
            0);
}

}  // namespace
}  // namespace whimbrel
