#include "runtime/settings.h"

#include <gtest/gtest.h>

#include <string>

namespace whimbrel {
namespace {

TEST(Settings, ReadsWhatRunPasses) {
  const char* environment[] = {"HOME=/root", "WHIMBREL_RAM=67108864", "WHIMBREL_TOTAL=1", "WHIMBREL_DEVICE=zstd,level=1",
                               "WHIMBREL_STATS=/run/s", "WHIMBREL_EVENTS=/run/e", nullptr};
  const Settings s = Settings::from_environment(environment);
  EXPECT_EQ(s.ram_bytes, 67108864u);
  EXPECT_EQ(s.total_bytes, 1u);
  EXPECT_STREQ(s.device, "zstd,level=1");
  EXPECT_STREQ(s.stats, "/run/s");
  EXPECT_STREQ(s.events, "/run/e");
  EXPECT_TRUE(s.active());
  EXPECT_TRUE(s.huge_pages);
}

TEST(Settings, HugePagesAreThereUnlessRefused) {
  for (const char* text : {"WHIMBREL_HUGE_PAGES=0", "WHIMBREL_HUGE_PAGES=1", "WHIMBREL_HUGE_PAGES=", "WHIMBREL_HUGE_PAGES=01"}) {
    const char* environment[] = {text, nullptr};
    EXPECT_EQ(Settings::from_environment(environment).huge_pages, std::string_view(text) != "WHIMBREL_HUGE_PAGES=0") << text;
  }
}

TEST(Settings, LeavesOtherProcessesAlone) {
  const char* environment[] = {"WHIMBREL_RAMX=5", "XWHIMBREL_RAM=5", "WHIMBREL_RAM", "WHIMBREL_DEVICE=ram", nullptr};
  EXPECT_FALSE(Settings::from_environment(environment).active());
  EXPECT_FALSE(Settings::from_environment(nullptr).active());
}

TEST(Settings, MalformedNumbersCountAsAbsent) {
  for (const char* text : {"WHIMBREL_RAM=", "WHIMBREL_RAM=64M", "WHIMBREL_RAM=-1", "WHIMBREL_RAM= 5",
                           "WHIMBREL_RAM=99999999999999999999999"}) {
    const char* environment[] = {text, nullptr};
    EXPECT_FALSE(Settings::from_environment(environment).active()) << text;
  }
}

TEST(Settings, TextThatDoesNotFitIsDropped) {
  const std::string path = "WHIMBREL_STATS=/" + std::string(600, 'x');
  const char* environment[] = {"WHIMBREL_RAM=1", path.c_str(), nullptr};
  EXPECT_STREQ(Settings::from_environment(environment).stats, "");
}

}  // namespace
}  // namespace whimbrel
