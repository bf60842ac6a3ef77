// What the tests of sessions share: patterns, children, sessions on each device.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <span>
#include <vector>

#include "whimbrel/whimbrel.hpp"

namespace whimbrel::session_tests {

inline constexpr std::size_t kMiB = std::size_t{1} << 20;
inline constexpr std::size_t kPage = 4096;
inline constexpr std::size_t kWords = kPage / sizeof(std::uint64_t);

using Words = whimbrel::array<std::uint64_t>;

// Compressible, and every page different.
inline std::uint64_t word_at(std::size_t i) { return i / kWords * 1'000'003 + i % 7; }

inline void fill(std::span<std::uint64_t> words, std::uint64_t salt = 0) {
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = word_at(i) + salt;
}
inline std::size_t wrong(std::span<const std::uint64_t> words, std::uint64_t salt = 0) {
  std::size_t bad = 0;
  for (std::size_t i = 0; i < words.size(); ++i) bad += words[i] != word_at(i) + salt ? 1 : 0;
  return bad;
}
inline std::size_t words_of(std::size_t bytes) { return bytes / sizeof(std::uint64_t); }

inline std::size_t count(const std::vector<whimbrel::page>& pages, int where) {
  std::size_t n = 0;
  for (const whimbrel::page& page : pages) n += page.where == where ? 1 : 0;
  return n;
}

inline bool is_whole(const whimbrel::outcome& o) { return o.asked == o.moved + o.already + o.empty + o.refused; }

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kForksWithThreads = false;  // ThreadSanitizer starts no thread in the child of a program with threads
#else
inline constexpr bool kForksWithThreads = true;
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kMapsLittle = false;
#else
inline constexpr bool kMapsLittle = true;
#endif
inline constexpr const char* kNoForks = "ThreadSanitizer starts no threads in a forked child";

inline bool on_guarded_arenas() {
  static const bool is = std::strcmp(whimbrel::session({.ram = 4 * kMiB}).rung(), "guarded arenas") == 0;
  return is;
}
inline constexpr const char* kNotGuarded = "not without userfaultfd: see guarded_session_test.cc";

// The status of a forked child that runs `body`.
template <class Body>
int in_child(Body body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

class SessionTest : public testing::TestWithParam<const char*> {
 protected:
  whimbrel::options budget(std::uint64_t ram) { return {.ram = ram, .device = GetParam()}; }
};

}  // namespace whimbrel::session_tests
