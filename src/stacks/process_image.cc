#include "stacks/process_image.h"

#include <elfutils/libdwfl.h>
#include <fcntl.h>
#include <gelf.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace whimbrel::stacks {
namespace {

constexpr pid_t kAnyProcess = 1, kAnyThread = 1;

int no_elf(Dwfl_Module*, void**, const char*, Dwarf_Addr, char**, Elf**) { return -1; }
int no_debug_information(Dwfl_Module*, void**, const char*, Dwarf_Addr, const char*, const char*, GElf_Word, char**) { return -1; }
// Unwinding needs the tables in the files themselves, no more.
const Dwfl_Callbacks kCallbacks = {.find_elf = no_elf, .find_debuginfo = no_debug_information, .section_address = nullptr, .debuginfo_path = nullptr};

// How far above its own addresses the file is, when `file_offset` of it is mapped at `address`. False: not such a file.
bool bias_of(const std::string& path, std::uint64_t address, std::uint64_t file_offset, std::uint64_t* bias) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return false;
  bool found = false;
  if (Elf* elf = elf_begin(fd, ELF_C_READ, nullptr); elf != nullptr) {
    std::size_t headers = 0;
    if (elf_kind(elf) == ELF_K_ELF && elf_getphdrnum(elf, &headers) == 0) {
      for (std::size_t i = 0; i < headers && !found; ++i) {
        GElf_Phdr p;
        if (gelf_getphdr(elf, static_cast<int>(i), &p) == nullptr || p.p_type != PT_LOAD || (p.p_flags & PF_X) == 0) continue;
        const std::uint64_t start = p.p_offset & ~std::uint64_t{4095};
        if (file_offset < start || file_offset >= p.p_offset + p.p_filesz) continue;
        *bias = address - (p.p_vaddr - p.p_offset + file_offset);
        found = true;
      }
    }
    elf_end(elf);
  }
  ::close(fd);
  return found;
}

}  // namespace

std::uint32_t FileNames::number_of(const std::string& path) {
  const auto found = std::find(paths_.begin(), paths_.end(), path);
  const auto number = static_cast<std::uint32_t>(found - paths_.begin());
  if (found == paths_.end()) paths_.push_back(path);
  return number;
}

// What libdw asks while it unwinds; the argument is the image.
struct UnwindCallbacks {
  static pid_t next_thread(Dwfl*, void* image, void** thread) {
    if (*thread != nullptr) return 0;
    *thread = image;
    return kAnyThread;
  }
  static bool get_thread(Dwfl*, pid_t, void* image, void** thread) {
    *thread = image;
    return true;
  }
  static bool memory_read(Dwfl*, Dwarf_Addr address, Dwarf_Word* result, void* image) {
    const PerfRecord& sample = *static_cast<ProcessImage*>(image)->current_;
    const std::uint64_t from = sample.registers[kStackPointer];
    if (address < from || sample.stack.size() < sizeof *result || address - from > sample.stack.size() - sizeof *result) return false;
    std::memcpy(result, sample.stack.data() + (address - from), sizeof *result);
    return true;
  }
  static bool set_initial_registers(Dwfl_Thread* thread, void* image) {
    const PerfRecord& sample = *static_cast<ProcessImage*>(image)->current_;
    std::array<Dwarf_Word, kRegisters> registers;
    std::copy(sample.registers.begin(), sample.registers.end(), registers.begin());
    return dwfl_thread_state_registers(thread, 0, kRegisters, registers.data());
  }
  static int frame(Dwfl_Frame* state, void* out) {
    auto& counters = *static_cast<std::vector<std::uint64_t>*>(out);
    Dwarf_Addr pc = 0;
    bool exact = false;
    if (!dwfl_frame_pc(state, &pc, &exact) || pc == 0) return DWARF_CB_ABORT;
    counters.push_back(exact ? pc : pc - 1);
    return counters.size() < ProcessImage::kMostFrames ? DWARF_CB_OK : DWARF_CB_ABORT;
  }
};

ProcessImage::~ProcessImage() { close(); }

void ProcessImage::close() {
  if (dwfl_ != nullptr) dwfl_end(dwfl_);
  dwfl_ = nullptr;
  useless_ = false;
}

void ProcessImage::add(std::uint64_t address, std::uint64_t length, std::uint64_t file_offset, const std::string& path) {
  // The kernel does not tell of what goes: what is under a new one has gone.
  std::erase_if(mappings_, [=](const Mapping& m) { return m.address < address + length && address < m.address + m.length; });
  mappings_.push_back({address, length, file_offset, path});
  close();
}

bool ProcessImage::prepare() {
  if (dwfl_ != nullptr || useless_) return dwfl_ != nullptr;
  elf_version(EV_CURRENT);
  dwfl_ = dwfl_begin(&kCallbacks);
  bool any = false;
  if (dwfl_ != nullptr) {
    dwfl_report_begin(dwfl_);
    for (const Mapping& m : mappings_) {
      std::uint64_t bias = 0;
      if (m.path.empty() || m.path[0] != '/' || !bias_of(m.path, m.address, m.file_offset, &bias)) continue;
      // A file that is mapped in several pieces is one module: the others overlap it and are refused.
      any = dwfl_report_elf(dwfl_, m.path.c_str(), m.path.c_str(), -1, bias, true) != nullptr || any;
    }
    dwfl_report_end(dwfl_, nullptr, nullptr);
    static constexpr Dwfl_Thread_Callbacks kThreads = {.next_thread = UnwindCallbacks::next_thread,
                                                       .get_thread = UnwindCallbacks::get_thread,
                                                       .memory_read = UnwindCallbacks::memory_read,
                                                       .set_initial_registers = UnwindCallbacks::set_initial_registers,
                                                       .detach = nullptr,
                                                       .thread_detach = nullptr};
    if (any && dwfl_attach_state(dwfl_, nullptr, kAnyProcess, &kThreads, this)) return true;
  }
  close();
  useless_ = true;
  return false;
}

std::vector<Frame> ProcessImage::unwind(const PerfRecord& sample, FileNames& files) {
  std::vector<Frame> out;
  if (sample.registers[kProgramCounter] == 0 || !prepare()) return out;
  current_ = &sample;
  std::vector<std::uint64_t> counters;
  (void)dwfl_getthread_frames(dwfl_, kAnyThread, UnwindCallbacks::frame, &counters);  // as far as the tables and the copy go
  current_ = nullptr;
  if (counters.empty()) counters.push_back(sample.registers[kProgramCounter]);
  for (const std::uint64_t pc : counters) {
    Frame frame{0, pc};
    if (Dwfl_Module* module = dwfl_addrmodule(dwfl_, pc); module != nullptr) {
      GElf_Addr bias = 0;
      if (dwfl_module_getelf(module, &bias) != nullptr) {
        frame.file = files.number_of(dwfl_module_info(module, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr));
        frame.address = pc - bias;
      }
    }
    out.push_back(frame);
  }
  return out;
}

}  // namespace whimbrel::stacks
