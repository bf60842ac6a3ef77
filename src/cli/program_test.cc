#include "cli/program.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "cli/elf_file.h"

namespace whimbrel::cli {
namespace {

using testing::TempDir;
namespace fs = std::filesystem;

class ProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/whimbrel-program-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }
  std::string write(const std::string& name, const std::string& text, mode_t mode = 0755) {
    const std::string path = directory_ + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    chmod(path.c_str(), mode);
    return path;
  }
  std::string directory_;
};

TEST_F(ProgramTest, OrdinaryProgramsCanBeManaged) {
  for (const char* name : {"sort", "sh", "/bin/ls"}) {
    const ProgramReport report = inspect_program(name);
    EXPECT_EQ(report.verdict, Manageable::kYes) << name << ": " << report.reason;
    EXPECT_TRUE(report.path.ends_with(fs::path(name).filename().string()));
  }
}

TEST_F(ProgramTest, FactsOfARealProgram) {
  const auto elf = read_elf("/proc/self/exe");
  ASSERT_TRUE(elf);
  EXPECT_TRUE(elf->is_64_bit);
  EXPECT_TRUE(elf->is_program);
  EXPECT_NE(elf->loader.find("ld-linux"), std::string::npos);
  EXPECT_NE(std::find(elf->needed.begin(), elf->needed.end(), "libc.so.6"), elf->needed.end());
  EXPECT_FALSE(elf->is_go);
}

TEST_F(ProgramTest, MissingProgramsAreNamed) {
  const ProgramReport report = inspect_program("no-such-program-here");
  EXPECT_EQ(report.verdict, Manageable::kNotFound);
  EXPECT_NE(report.reason.find("no-such-program-here"), std::string::npos);
  EXPECT_EQ(inspect_program("/nonexistent/x").verdict, Manageable::kNotFound);
  EXPECT_EQ(inspect_program("").verdict, Manageable::kNotFound);
}

TEST_F(ProgramTest, DirectoriesAndPlainFilesAreNotPrograms) {
  EXPECT_EQ(inspect_program(directory_).verdict, Manageable::kNotExecutable);
  EXPECT_EQ(inspect_program(write("data", "hello", 0644)).verdict, Manageable::kNotExecutable);
  const ProgramReport shellish = inspect_program(write("noshebang", "echo hi\n"));
  EXPECT_EQ(shellish.verdict, Manageable::kNotExecutable);
  EXPECT_NE(shellish.advice.find("sh "), std::string::npos);
}

TEST_F(ProgramTest, ScriptsAreJudgedByTheirInterpreter) {
  const ProgramReport good = inspect_program(write("good", "#! /bin/sh -e\nexit 0\n"));
  EXPECT_EQ(good.verdict, Manageable::kYes) << good.reason;
  EXPECT_EQ(good.interpreter, "/bin/sh");
  const ProgramReport bad = inspect_program(write("bad", "#!/no/such/interpreter\n"));
  EXPECT_EQ(bad.verdict, Manageable::kNotExecutable);
  EXPECT_NE(bad.reason.find("/no/such/interpreter"), std::string::npos);
  const std::string loop = directory_ + "/loop";
  EXPECT_EQ(inspect_program(write("loop", "#!" + loop + "\n")).verdict, Manageable::kNotExecutable);
}

TEST_F(ProgramTest, StaticProgramsAreRefusedWithAReason) {
  const std::string source = write("s.c", "int main(void){return 0;}\n", 0644);
  const std::string program = directory_ + "/static";
  ASSERT_EQ(system(("cc -static -o " + program + " " + source).c_str()), 0);
  const ProgramReport report = inspect_program(program);
  EXPECT_EQ(report.verdict, Manageable::kNo);
  EXPECT_NE(report.reason.find("statically linked"), std::string::npos);
  EXPECT_FALSE(report.advice.empty());
}

TEST_F(ProgramTest, SetuidProgramsOfOthersAreRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to make a setuid program of another user";
  const std::string program = directory_ + "/suid";
  fs::copy_file("/bin/ls", program);
  ASSERT_EQ(chown(program.c_str(), 12345, 12345), 0);
  ASSERT_EQ(chmod(program.c_str(), 04755), 0);
  const ProgramReport report = inspect_program(program);
  EXPECT_EQ(report.verdict, Manageable::kNo);
  EXPECT_NE(report.reason.find("setuid"), std::string::npos);
  ASSERT_EQ(chown(program.c_str(), 0, 0), 0);  // our own: the loader trusts the environment
  ASSERT_EQ(chmod(program.c_str(), 04755), 0);
  EXPECT_EQ(inspect_program(program).verdict, Manageable::kYes);
}

TEST_F(ProgramTest, DamagedElfFilesDoNoHarm) {
  std::ifstream self("/bin/ls", std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(self)), std::istreambuf_iterator<char>());
  for (std::size_t length : {4u, 16u, 40u, 64u, 100u, 1000u, 5000u}) {
    const ProgramReport report = inspect_program(write("cut", whole.substr(0, length)));
    EXPECT_NE(report.verdict, Manageable::kNotFound) << length;
  }
  std::string wild = whole;
  for (std::size_t i = 32; i < 64; ++i) wild[i] = '\xff';  // offsets and counts out of any bound
  EXPECT_NE(inspect_program(write("wild", wild)).verdict, Manageable::kYes);
}

TEST_F(ProgramTest, PathIsSearchedInOrderAndEmptyElementsMeanHere) {
  const std::string first = write("tool-of-this-test", "#!/bin/sh\n", 0644);  // found first, but not executable
  fs::create_directory(directory_ + "/second");
  const std::string second = write("second/tool-of-this-test", "#!/bin/sh\n");
  const std::string old = std::getenv("PATH");
  setenv("PATH", (directory_ + ":" + directory_ + "/second").c_str(), 1);
  EXPECT_EQ(find_program("tool-of-this-test"), second);
  setenv("PATH", directory_.c_str(), 1);
  EXPECT_EQ(inspect_program("tool-of-this-test").verdict, Manageable::kNotExecutable);
  setenv("PATH", old.c_str(), 1);
}

}  // namespace
}  // namespace whimbrel::cli
