#include "devices/device_spec.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "devices/size_text.h"
#include "devices/spec_options.h"
#include "tests/device_kit/page_contents.h"
#include "tests/device_kit/test_memory.h"

namespace whimbrel::testing {
namespace {

TEST(SizeText, ReadsWhatPeopleWrite) {
  EXPECT_EQ(parse_size("0"), 0u);
  EXPECT_EQ(parse_size("4096"), 4096u);
  EXPECT_EQ(parse_size("16K"), 16u << 10);
  EXPECT_EQ(parse_size("16k"), 16u << 10);
  EXPECT_EQ(parse_size("256M"), 256u << 20);
  EXPECT_EQ(parse_size("256MiB"), 256u << 20);
  EXPECT_EQ(parse_size("1.5G"), 3ull << 29);
  EXPECT_EQ(parse_size("0.25T"), 1ull << 38);
  EXPECT_EQ(parse_size("1.000000001G"), (1ull << 30) + 1);
  EXPECT_EQ(parse_size("1.0000000019999G"), (1ull << 30) + 1);
  EXPECT_EQ(parse_size("8388607T"), 8388607ull << 40);
}

TEST(SizeText, RefusesTheRest) {
  for (const char* text : {"",
                           "10X",
                           "M",
                           "-1",
                           "+1",
                           " 1",
                           "1 ",
                           "1 M",
                           "1.5",
                           "1.G",
                           ".5G",
                           "1..5G",
                           "1.5.5G",
                           "10MB",
                           "10MiBs",
                           "1e3",
                           "0x10",
                           "8388608T",
                           "99999999999999999999",
                           "18446744073709551616K",
                           "KM"}) {
    EXPECT_EQ(parse_size(text), std::nullopt) << text;
  }
}

TEST(SizeText, WritesTheShortestExactForm) {
  char buffer[24];
  EXPECT_EQ(format_size(0, buffer), "0");
  EXPECT_EQ(format_size(5000, buffer), "5000");
  EXPECT_EQ(format_size(16 << 10, buffer), "16K");
  EXPECT_EQ(format_size(3ull << 29, buffer), "1536M");
  EXPECT_EQ(format_size(1ull << 63, buffer), "8388608T");
  for (const std::uint64_t bytes : {1ull, 1023ull, 1025ull, 4096ull, 123456789ull, 7ull << 40}) {
    EXPECT_EQ(parse_size(format_size(bytes, buffer)), bytes);
  }
}

TEST(SpecMessage, LongTextsEndInDots) {
  SpecMessage message;
  for (int i = 0; i < 200; ++i) message.add("word ");
  EXPECT_EQ(message.text().size(), 511u);
  EXPECT_TRUE(message.text().ends_with("..."));
  EXPECT_EQ(std::strlen(message.c_str()), 511u);
  message.clear();
  EXPECT_TRUE(message.empty());
  EXPECT_STREQ(message.c_str(), "");
}

TEST(DeviceSpec, GoodOnesAreTaken) {
  for (const char* text : {"ram", "lz4", "zstd", "ram:", "ram:unit=2M", "lz4:unit=4K", "lz4:capacity=1.5G,unit=64K",
                           "zstd:level=3,unit=16K,capacity=2G", "zstd:level=19"}) {
    SpecMessage message;
    EXPECT_TRUE(check_device_spec(text, built_in_devices(), message).has_value()) << text << ": " << message.text();
    EXPECT_TRUE(message.empty());
  }
}

struct Bad {
  const char* text;
  const char* message;
};

TEST(DeviceSpec, BadOnesAreExplained) {
  const Bad cases[] = {
      {"", "the device is empty; name one of ram, lz4, zstd, file, nbd, chain and mirror"},
      {"zst", "there is no device 'zst'; there are ram, lz4, zstd, file, nbd, chain and mirror"},
      {"ZSTD", "there is no device 'ZSTD'; there are ram, lz4, zstd, file, nbd, chain and mirror"},
      {"zstd:levle=3", "zstd: there is no option 'levle'; zstd takes unit=4K..64K, capacity=SIZE, level=1..19"},
      {"zstd:3", "zstd: there is no option '3'; zstd takes unit=4K..64K, capacity=SIZE, level=1..19"},
      {"lz4:level=3", "lz4: there is no option 'level'; lz4 takes unit=4K..64K, capacity=SIZE"},
      {"zstd:level=20", "zstd: level is '20', but must be a number from 1 to 19"},
      {"zstd:level=0", "zstd: level is '0', but must be a number from 1 to 19"},
      {"zstd:level=-1", "zstd: level is '-1', but must be a number from 1 to 19"},
      {"zstd:level=", "zstd: level is '', but must be a number from 1 to 19"},
      {"zstd:level", "zstd: level is '', but must be a number from 1 to 19"},
      {"zstd:level=3K", "zstd: level is '3K', but must be a number from 1 to 19"},
      {"zstd:unit=17K", "zstd: unit is '17K', but must be a power of two from 4K to 64K"},
      {"zstd:unit=12K", "zstd: unit is '12K', but must be a power of two from 4K to 64K"},
      {"lz4:unit=128K", "lz4: unit is '128K', but must be a power of two from 4K to 64K"},
      {"ram:unit=4M", "ram: unit is '4M', but must be a power of two from 4K to 2M"},
      {"zstd:capacity=10X", "zstd: capacity is '10X', but must be a size of at least 1M, e.g. 256M or 1.5G"},
      {"zstd:capacity=0", "zstd: capacity is '0', but must be a size of at least 1M, e.g. 256M or 1.5G"},
      {"zstd:level=3,level=4", "zstd: level is given twice"},
      {"file", "file: names no place; file:PATH, with PATH a new file, a directory or a block device"},
      {"file:,size=1G", "file: names no place; file:PATH, with PATH a new file, a directory or a block device"},
      {"file:/var/tmp,colour=red",
       "file: there is no option 'colour'; file takes size=SIZE, direct=auto|on|off, extent=4K..256K, "
       "compress=none|lz4|zstd, encrypt=off|on, depth=1..64, ring=auto|off, force=off|on"},
      {"file:/var/tmp,direct=maybe", "file: direct is 'maybe', but must be auto or on or off"},
      {"file:/var/tmp,extent=48K", "file: extent is '48K', but must be a power of two from 4K to 256K"},
      {"file:/var/tmp,compress=zstd,extent=256K", "file: extent is '256K', but with compress it can be at most 64K"},
      {"file:/var/tmp,depth=0", "file: depth is '0', but must be a number from 1 to 64"},
      {"file:/var/tmp,size=5", "file: size is '5', but must be a size of at least 1M, e.g. 256M or 1.5G"},
      {"zstd:level=3,,unit=4K", "zstd: there is no option ''; zstd takes unit=4K..64K, capacity=SIZE, level=1..19"},
  };
  for (const Bad& bad : cases) {
    SpecMessage message;
    message.add("left over from before");
    const Result<void> result = check_device_spec(bad.text, built_in_devices(), message);
    ASSERT_FALSE(result.has_value()) << bad.text;
    EXPECT_EQ(result.error().code, Errc::kInvalid);
    EXPECT_EQ(message.text(), bad.message);
    TestMemory memory;
    const Result<DeviceHandle> device = make_device(bad.text, {.memory = memory, .kinds = built_in_devices()}, message);
    EXPECT_FALSE(device.has_value());
    EXPECT_EQ(message.text(), bad.message);
    EXPECT_EQ(memory.bytes_in_use(), 0u);
  }
}

TEST(DeviceSpec, RandomTextsNeverCrash) {
  Random random(run_seed());
  const std::string letters = "zstdlramevucpit4:=,.0123459KMG-";
  for (int i = 0; i < 20'000; ++i) {
    std::string text = random.below(2) == 0 ? "zstd:" : "";
    for (std::uint64_t n = random.below(40); n > 0; --n) text += letters[random.below(letters.size())];
    SpecMessage message;
    const bool good = check_device_spec(text, built_in_devices(), message).has_value();
    EXPECT_EQ(good, message.empty()) << text;
  }
}

TEST(DeviceSpec, WhatNeedsTheDeviceProcess) {
  for (const char* spec : {"nbd://h/x", "nbd:nbd+unix:///?socket=/s,size=1G", "mirror:nbd://a,nbd://b", "chain:lz4@1M,nbd://a",
                           "chain:lz4@1M,[mirror:zstd,nbd:nbds://a,connections=2]"}) {
    SpecMessage message;
    EXPECT_TRUE(check_device_spec(spec, built_in_devices(), message).has_value()) << message.c_str();
    EXPECT_TRUE(needs_device_process(spec, built_in_devices())) << spec;
    EXPECT_FALSE(try_device_spec(spec, built_in_devices(), "", message).has_value()) << spec;
  }
  for (const char* spec : {"zstd", "chain:lz4@1M,zstd", "mirror:ram,lz4", "nothing"}) {
    EXPECT_FALSE(needs_device_process(spec, built_in_devices())) << spec;
  }
}

TEST(DeviceSpec, DevicesAreMadeAsTold) {
  TestMemory memory;
  {
    const DeviceEnvironment environment{.memory = memory, .kinds = built_in_devices()};
    SpecMessage message;
    const auto make = [&](const char* text) { return make_device(text, environment, message).value(); };
    EXPECT_STREQ(make("ram")->traits().name, "ram");
    EXPECT_EQ(make("ram:unit=2M")->traits().unit_pages, 512u);
    EXPECT_STREQ(make("lz4")->traits().name, "lz4");
    EXPECT_EQ(make("lz4:unit=64K")->traits().unit_pages, 16u);
    const DeviceHandle zstd = make("zstd:capacity=1.5G");
    EXPECT_STREQ(zstd->traits().name, "zstd");
    EXPECT_EQ(zstd->traits().unit_pages, 4u);
    EXPECT_EQ(zstd->stats().capacity_bytes, 3ull << 29);
    EXPECT_TRUE(zstd->reserve(4).has_value());
    DeviceHandle moved = make("lz4");
    moved = make("ram");
    EXPECT_STREQ(moved->traits().name, "ram");
    const DeviceHandle file = make("file:/var/tmp,size=1G,extent=16K,compress=lz4");
    EXPECT_STREQ(file->traits().name, "file");
    EXPECT_EQ(file->traits().unit_pages, 4u);
    EXPECT_EQ(file->stats().capacity_bytes, 1ull << 30);
    EXPECT_FALSE(file->traits().in_process_memory);
  }
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

TEST(DeviceSpec, AFailedSetUpSaysWhichDevice) {
  TestMemory memory(4096);
  SpecMessage message;
  for (const std::string text : {"ram", "lz4", "zstd", "file:/var/tmp"}) {
    const Result<DeviceHandle> device = make_device(text, {.memory = memory, .kinds = built_in_devices()}, message);
    ASSERT_FALSE(device.has_value());
    EXPECT_EQ(device.error().code, Errc::kNoMemory);
    const std::string name = text.substr(0, text.find(':'));
    EXPECT_TRUE(message.text().starts_with(name + ": cannot be set up: ")) << message.text();
    EXPECT_EQ(memory.bytes_in_use(), 0u);
  }
}

// What a path stands for decides; nothing of what is there is touched unless it is forced.
TEST(DeviceSpec, PathsAreLookedAt) {
  std::string directory = "/var/tmp/whimbrel-spec-XXXXXX";
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  const std::string file = directory + "/precious";
  std::ofstream(file) << "text";
  const auto explanation = [](const std::string& text) {
    SpecMessage message;
    const bool good = check_device_spec(text, built_in_devices(), message).has_value();
    EXPECT_EQ(good, message.empty());
    // Making it comes to the same verdict.
    TestMemory memory;
    SpecMessage again;
    const bool made = make_device(text, {.memory = memory, .kinds = built_in_devices()}, again).has_value();
    EXPECT_EQ(made, good) << text << ": " << again.text();
    return std::string(message.text());
  };
  EXPECT_EQ(explanation("file:" + directory), "");
  EXPECT_EQ(explanation("file:" + directory + "/new"), "");
  EXPECT_FALSE(std::filesystem::exists(directory + "/new")) << "its name stays";
  EXPECT_EQ(explanation("file:" + file),
            "file: " + file + " exists already, and its contents would be lost; name a new file or a directory, or add "
            "force=on to overwrite it");
  EXPECT_EQ(std::filesystem::file_size(file), 4u);
  EXPECT_EQ(explanation("file:" + directory + "/no/where"),
            "file: " + directory + "/no/where lies in a directory that cannot be reached: no such file or directory");
  EXPECT_EQ(explanation("file:" + file + "/below"), "file: " + file + "/below cannot be reached: not a directory");
  EXPECT_EQ(explanation("file:/dev/null"), "file: /dev/null is neither a file, a directory nor a block device");
  EXPECT_EQ(explanation("file:" + file + ",force=on"), "");
  EXPECT_EQ(std::filesystem::file_size(file) % 4096, 0u) << "forced";
  std::filesystem::remove_all(directory);
}

// A kind from outside takes part by being in the list, and can make devices itself.
TEST(DeviceSpec, FurtherKindsCanBeAdded) {
  static const DeviceKind wrapper = {.name = "wrap",
                                     .usage = "wrap:DEVICE",
                                     .check = check_device_spec,
                                     .make = [](std::string_view arguments, const DeviceEnvironment& environment,
                                                SpecMessage& message) noexcept -> Result<Device*> {
                                       Result<DeviceHandle> inner = make_device(arguments, environment, message);
                                       if (!inner) return std::unexpected(inner.error());
                                       return fail(Errc::kNotSupported, 0, "only a test");
                                     },
                                     .destroy = nullptr};
  std::vector<const DeviceKind*> kinds(built_in_devices().begin(), built_in_devices().end());
  kinds.push_back(&wrapper);
  SpecMessage message;
  EXPECT_TRUE(check_device_spec("wrap:zstd:level=2", kinds, message).has_value());
  EXPECT_FALSE(check_device_spec("wrap:zstd:level=77", kinds, message).has_value());
  EXPECT_EQ(message.text(), "zstd: level is '77', but must be a number from 1 to 19");
  EXPECT_FALSE(check_device_spec("wrap", kinds, message).has_value());
  EXPECT_EQ(message.text(), "the device is empty; name one of ram, lz4, zstd, file, nbd, chain, mirror and wrap");
  TestMemory memory;
  EXPECT_EQ(make_device("wrap:lz4", {.memory = memory, .kinds = kinds}, message).error().code, Errc::kNotSupported);
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

}  // namespace
}  // namespace whimbrel::testing
