// The tools that replay the vectors, without any device: what they read, what they refuse, and that a wrong answer
// fails.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "tests/vectors/check/comparison.h"
#include "tests/vectors/check/deviations.h"
#include "tests/vectors/check/replay_process.h"
#include "tests/vectors/replay/script.h"
#include "tests/vectors/replay/vector_file.h"

namespace vectors {
namespace {

constexpr char kForkVector[] =
    "== a-fork\n"
    "# one page, shared\n"
    "open a 0 => ok\n"
    "fork => ok\n"
    " child\n"
    "  r 0 1 => v1\n"
    "  snap  a 0 2   =>? ok 01*2\n"
    " parent\n"
    "  dread a 0 2 => ok cpages 2 faults 1 : v1*2\n"
    "end\n";

constexpr char kForkOutput[] =
    "2 open a 0 => ok\n"
    "3 fork => ok\n"
    "  5 r 0 1 => v1\n"
    "  6 snap a 0 2 => ok 22*2\n"
    "8 dread a 0 2 => ok cpages 2 faults 1 : v1*2\n";

Vector fork_vector() { return parse_vectors(kForkVector, "test").value().at(0); }

Deviations listed(const std::string& entries) { return Deviations::parse(entries, "list", {}).value(); }

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  text.replace(text.find(what), what.size(), with);
  return text;
}

TEST(VectorFile, ReadsAnswersWithIndentationOfTheirProcess) {
  const Vector vector = fork_vector();
  EXPECT_EQ(vector.name, "a-fork");
  ASSERT_EQ(vector.record.size(), 5u);
  EXPECT_EQ(vector.record[2].text, "  5 r 0 1 => v1");
  EXPECT_EQ(vector.record[3].text, "  6 snap a 0 2 => ok 01*2");
  EXPECT_FALSE(vector.record[3].stable);
  EXPECT_EQ(vector.record[4].text, "8 dread a 0 2 => ok cpages 2 faults 1 : v1*2");
}

TEST(VectorFile, KeepsTheScriptsLineNumbers) {
  const auto script = Script::parse(fork_vector().script);
  ASSERT_TRUE(script) << script.error();
  ASSERT_EQ(script->body().size(), 2u);
  EXPECT_EQ(script->body()[0].operation.line, 2);
  ASSERT_TRUE(script->body()[1].fork);
  EXPECT_EQ(script->body()[1].fork->sections.size(), 2u);
}

TEST(VectorFile, RefusesWhatIsNoVector) {
  EXPECT_FALSE(parse_vectors("open a 0 => ok\n", "test"));
  EXPECT_FALSE(parse_vectors("== x\nfrobnicate 1 2 => ok\n", "test"));
  EXPECT_FALSE(parse_vectors("== x\nfork => ok\n child\n", "test"));
}

TEST(Script, RefusesWrongArguments) {
  for (const char* line :
       {"map 0 8 rw", "map 0 8 rq anon", "map 0 8 rw anon big", "open z 0", "r zero 1", "r 0 1 1 1", "advise 0 1 pray",
        "remap 0 1 2 1 sideways", "map 0 1 rw file:x", "ioctl a 0 0+x 1 buf", "child", "end", "fork\nr 0 1\nend"}) {
    EXPECT_FALSE(Script::parse(line)) << line;
  }
}

TEST(Script, AcceptsEveryOperation) {
  const char* script =
      "map 0 8 rw anon\nmap 0 8 r sh"
      "anon nohuge\nmap 0 8 - file:3:2 huge\nunmap 0 1\nprotect 0 1 rx\nlock 0 1\n"
      "unlock 0 1\nadvise 0 1 guard\nremap 0 1 2 1 dontunmap\nmkfile 0 1 1\nfwrite 0 0 1 1\nfread 0 0 1\ntrunc 0 0\n"
      "w 0 1 1\nw 0 1 1 2\nr 0 1\nr 0 1 2\nkread 0 1\nkwrite 0 1 1\nmincore 0 1\nopen a 0\nclose a\ndup a b\n"
      "mapdev a 0 1 r\ntodev a 0 1\ntosys a 0 1\ndread a 0 1\ndwrite a 0 1 1\nsnap a 0 1\nexcl a 0 1\nchkexcl a 0 1\n"
      "release a\nflags a 2\nfail a\nioctl a 200 =0xfffffffffffff000 0x10000000000000 noblock\n"
      "fork\nchild\nexit\nparent\nfork\nchild\nend\nend  # comment\n";
  const auto parsed = Script::parse(script);
  EXPECT_TRUE(parsed) << parsed.error();
}

TEST(Comparison, PassesTheRecord) {
  const Verdict verdict = compare(fork_vector(), kForkOutput, {});
  EXPECT_TRUE(verdict.differences.empty());
  EXPECT_EQ(verdict.lines, 5);
}

TEST(Comparison, FailsOnAWrongMissingOrAdditionalAnswer) {
  const std::string output = kForkOutput;
  EXPECT_EQ(compare(fork_vector(), replaced(output, "v1*2", "v2*2"), {}).differences.size(), 1u);
  EXPECT_EQ(compare(fork_vector(), replaced(output, "faults 1", "faults 0"), {}).differences.size(), 1u);
  EXPECT_EQ(compare(fork_vector(), output.substr(0, output.find("8 dread")), {}).differences.size(), 1u);
  EXPECT_EQ(compare(fork_vector(), output + "9 r 0 1 => v1\n", {}).differences.size(), 1u);
  EXPECT_FALSE(compare(fork_vector(), "", {}).differences.empty());
}

TEST(Comparison, AsksOnlyForThePresenceOfAnUnstableLine) {
  const std::string output = kForkOutput;
  const std::string line = "  6 snap a 0 2 => ok 22*2\n";
  EXPECT_TRUE(compare(fork_vector(), replaced(output, "ok 22*2", "EINVAL"), {}).differences.empty());
  EXPECT_FALSE(compare(fork_vector(), replaced(output, line, ""), {}).differences.empty());
}

TEST(Deviations, AListedAnswerPassesAndNoOther) {
  const Deviations exact = listed("reason r: text\na-fork:8 r => ok cpages 2 faults 0 : v1*2\n");
  const std::string output = kForkOutput;
  const std::string fewer = replaced(output, "faults 1", "faults 0");
  EXPECT_TRUE(compare(fork_vector(), fewer, exact).differences.empty());
  EXPECT_EQ(compare(fork_vector(), fewer, exact).deviating_lines, 1);
  EXPECT_FALSE(compare(fork_vector(), replaced(output, "faults 1", "faults 7"), exact).differences.empty());
  EXPECT_FALSE(compare(fork_vector(), output, exact).differences.empty()) << "not needed";
}

TEST(Deviations, OneThatMayBeAbsentAllowsBoth) {
  const Deviations either = listed("reason r: text\na-fork:8 r =>? EFAULT\n");
  const std::string output = kForkOutput;
  EXPECT_TRUE(compare(fork_vector(), output, either).differences.empty());
  EXPECT_TRUE(
      compare(fork_vector(), replaced(output, "ok cpages 2 faults 1 : v1*2", "EFAULT"), either).differences.empty());
  EXPECT_FALSE(
      compare(fork_vector(), replaced(output, "ok cpages 2 faults 1 : v1*2", "EBUSY"), either).differences.empty());
}

TEST(Deviations, NeverExcusePageContents) {
  const Deviations any = listed("reason r: text\na-fork:8 r => *\n");
  const std::string output = kForkOutput;
  EXPECT_TRUE(compare(fork_vector(), replaced(output, "faults 1", "faults 3"), any).differences.empty());
  EXPECT_FALSE(compare(fork_vector(), replaced(output, "v1*2", "0*2"), any).differences.empty());
}

TEST(Deviations, AWholeVectorMustDeviateSomewhere) {
  const Deviations whole = listed("reason r: text\na-fork:* r\n");
  const std::string output = kForkOutput;
  EXPECT_TRUE(compare(fork_vector(), replaced(output, "v1*2", "0*2"), whole).differences.empty());
  EXPECT_FALSE(compare(fork_vector(), output, whole).differences.empty());
}

TEST(Deviations, RefusesListsThatAreWrong) {
  EXPECT_FALSE(Deviations::parse("a-fork:8 r => ok\n", "list", {})) << "unknown reason";
  EXPECT_FALSE(Deviations::parse("reason r: text\n", "list", {})) << "unused reason";
  EXPECT_FALSE(Deviations::parse("reason r:\na-fork:8 r => ok\n", "list", {})) << "no text";
  EXPECT_FALSE(Deviations::parse("reason r: text\na-fork:8 r\n", "list", {})) << "no answer";
  EXPECT_FALSE(Deviations::parse("reason r: text\na-fork r => ok\n", "list", {})) << "no line";
  EXPECT_FALSE(Deviations::parse("reason r: text\na-fork:8 r => ok\na-fork:8 r => ok\n", "list", {})) << "twice";
}

TEST(Deviations, OneWithAConditionCountsOnlyWhereItHolds) {
  const std::string entries = "reason r when no-zero-page: text\na-fork:8 r => ok cpages 2 faults 0 : v1*2\n";
  const std::string output = kForkOutput;
  const std::string fewer = replaced(output, "faults 1", "faults 0");
  const Deviations here = Deviations::parse(entries, "list", {"no-zero-page"}).value();
  EXPECT_TRUE(compare(fork_vector(), fewer, here).differences.empty());
  EXPECT_FALSE(compare(fork_vector(), output, here).differences.empty());
  const Deviations elsewhere = Deviations::parse(entries, "list", {}).value();
  EXPECT_FALSE(compare(fork_vector(), fewer, elsewhere).differences.empty());
  EXPECT_TRUE(compare(fork_vector(), output, elsewhere).differences.empty());
  EXPECT_FALSE(Deviations::parse("reason r when rainy: text\na-fork:8 r => ok\n", "list", {})) << "unknown";
}

TEST(Deviations, MustSpeakOfALineThatMayDeviate) {
  const std::vector<Vector> all = {fork_vector()};
  EXPECT_TRUE(listed("reason r: text\na-fork:8 r => *\n").check(all, false));
  EXPECT_FALSE(listed("reason r: text\na-fork:5 r => *\n").check(all, false)) << "a CPU access";
  EXPECT_FALSE(listed("reason r: text\na-fork:3 r => *\n").check(all, false)) << "fork";
  EXPECT_FALSE(listed("reason r: text\na-fork:1 r => *\n").check(all, false)) << "no such line";
  EXPECT_FALSE(listed("reason r: text\nother:8 r => *\n").check(all, false)) << "no such vector";
  EXPECT_TRUE(listed("reason r: text\nother:8 r => *\n").check(all, true));
}

TEST(ProgramView, SeesContentsAndNotDevices) {
  const std::string with = "1 todev a 0 2 => ok cpages 2 faults 0 : v1*2\n2 r 0 2 => v1*2\n";
  EXPECT_TRUE(compare_program_view("1 todev a 0 2 => skipped\n2 r 0 2 => v1*2\n", with).differences.empty());
  EXPECT_EQ(compare_program_view("1 todev a 0 2 => skipped\n2 r 0 2 => v2*2\n", with).differences.size(), 1u);
  EXPECT_EQ(compare_program_view("2 r 0 2 => v1*2\n3 w 0 1 2 => ok\n", with).differences.size(), 1u);
}

// Runs the real replayer on a script of its own.
class Replay : public testing::Test {
 protected:
  ReplayResult replay(const std::string& script, std::vector<std::string> arguments = {}, int time_limit = 30) {
    const std::string path = testing::TempDir() + "replay-" + std::to_string(getpid()) + ".ops";
    std::ofstream(path) << script;
    arguments.push_back(path);
    ReplayResult result;
    run_replays(REPLAY_PROGRAM, {{arguments, "", [&](const ReplayResult& run) { result = run; }}}, 1, time_limit);
    unlink(path.c_str());
    return result;
  }
};

TEST_F(Replay, NamesContentsSignalsAndErrors) {
  const ReplayResult run = replay(
      "map 0 4 rw anon nohuge\nw 0 2 7\nr 0 5\nprotect 0 1 r\nw 0 1 1\nremap 1 2 64 2 fixed\nr 64 2\n"
      "mkfile 0 2 9\nmap 8 4 r shfile:0\nr 8 4\nunmap 0 4\nprotect 0 4 r\nkread 64 1\nkwrite 0 1 1\n");
  EXPECT_EQ(run.failure, "");
  EXPECT_EQ(run.output,
            "1 map 0 4 rw anon nohuge => ok\n2 w 0 2 7 => ok*2\n3 r 0 5 => v7*2 0*2 SEGV\n4 protect 0 1 r => ok\n"
            "5 w 0 1 1 => SEGV\n6 remap 1 2 64 2 fixed => ok\n7 r 64 2 => v7@63 0\n8 mkfile 0 2 9 => ok*2\n"
            "9 map 8 4 r shfile:0 => ok\n10 r 8 4 => v9@8*2 BUS*2\n11 unmap 0 4 => ok\n12 protect 0 4 r => ENOMEM\n"
            "13 kread 64 1 => v7@63\n14 kwrite 0 1 1 => EFAULT\n");
}

TEST_F(Replay, TakesTurnsInTheOrderWritten) {
  const ReplayResult run = replay(
      "map 0 1 rw anon nohuge\nw 0 1 1\nfork\n parent\n  w 0 1 2\n child\n  r 0 1\n  w 0 1 3\n parent\n  r 0 1\n"
      " child\n  r 0 1\n  fork\n   child\n    r 0 1\n  end\n parent\n  r 0 1\nend\n");
  EXPECT_EQ(run.failure, "");
  EXPECT_EQ(run.output,
            "1 map 0 1 rw anon nohuge => ok\n2 w 0 1 1 => ok\n3 fork => ok\n5 w 0 1 2 => ok\n  7 r 0 1 => v1\n"
            "  8 w 0 1 3 => ok\n10 r 0 1 => v2\n  12 r 0 1 => v3\n  13 fork => ok\n    15 r 0 1 => v3\n"
            "18 r 0 1 => v2\n");
}

TEST_F(Replay, SkipsDevicesWhenAsked) {
  const std::string script = "open a 0\nmap 0 1 rw anon nohuge\ndwrite a 0 1 5\ntodev a 0 1\nr 0 1\n";
  EXPECT_EQ(replay(script, {"--skip-devices"}).output,
            "1 open a 0 => skipped\n2 map 0 1 rw anon nohuge => ok\n3 dwrite a 0 1 5 => skipped\n"
            "4 todev a 0 1 => skipped\n5 r 0 1 => 0\n");
}

TEST_F(Replay, ReportsAbsentNodes) {
  EXPECT_EQ(replay("open a 0\nsnap a 0 1\n", {"--dev", "/nonexistent/node"}).output,
            "1 open a 0 => ENOENT\n2 snap a 0 1 => EBADF\n");
}

TEST_F(Replay, AWrongScriptDoesNotRun) {
  const ReplayResult run = replay("map 0 1 rw anon\nnonsense\n");
  EXPECT_EQ(run.failure, "exit status 2");
  EXPECT_EQ(run.output, "");
  EXPECT_NE(run.errors.find("line 2: unknown operation 'nonsense'"), std::string::npos) << run.errors;
}

TEST_F(Replay, AHangEndsAtTheTimeLimit) {
  // A read that faults a billion times over: longer than the limit on any machine.
  const ReplayResult run = replay("r 0 1000000000\n", {}, 1);
  EXPECT_EQ(run.failure, "took too long");
}

}  // namespace
}  // namespace vectors
