#include "cli/elf_file.h"

#include <elf.h>

#include <cstring>
#include <fstream>

namespace whimbrel::cli {
namespace {

constexpr std::size_t kMostHeaders = 4096;
constexpr std::size_t kMostBytes = std::size_t{16} << 20;  // of one table

// Reads `bytes` at `offset`; an empty vector when the file is too short (a damaged or hostile file).
std::vector<char> read_at(std::ifstream& file, std::uint64_t offset, std::uint64_t bytes) {
  if (bytes > kMostBytes) return {};
  std::vector<char> out(bytes);
  file.clear();
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(out.data(), static_cast<std::streamsize>(bytes));
  if (static_cast<std::uint64_t>(file.gcount()) != bytes) out.clear();
  return out;
}

template <class T>
std::vector<T> read_table(std::ifstream& file, std::uint64_t offset, std::size_t count) {
  if (count > kMostHeaders) return {};
  const std::vector<char> bytes = read_at(file, offset, count * sizeof(T));
  std::vector<T> out(bytes.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
  return out;
}

std::string text_at(const std::vector<char>& strings, std::uint64_t offset) {
  if (offset >= strings.size()) return {};
  const char* begin = strings.data() + offset;
  return std::string(begin, strnlen(begin, strings.size() - offset));
}

std::uint64_t file_offset_of(const std::vector<Elf64_Phdr>& segments, std::uint64_t address) {
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type == PT_LOAD && segment.p_vaddr <= address && address - segment.p_vaddr < segment.p_filesz) {
      return segment.p_offset + (address - segment.p_vaddr);
    }
  }
  return 0;
}

std::vector<std::string> read_needed(std::ifstream& file, const std::vector<Elf64_Phdr>& segments,
                                     const Elf64_Phdr& dynamic) {
  const std::vector<Elf64_Dyn> entries =
      read_table<Elf64_Dyn>(file, dynamic.p_offset, dynamic.p_filesz / sizeof(Elf64_Dyn));
  std::uint64_t strings_at = 0, strings_bytes = 0;
  std::vector<std::uint64_t> names;
  for (const Elf64_Dyn& entry : entries) {
    if (entry.d_tag == DT_NULL) break;
    if (entry.d_tag == DT_STRTAB) strings_at = entry.d_un.d_ptr;
    if (entry.d_tag == DT_STRSZ) strings_bytes = entry.d_un.d_val;
    if (entry.d_tag == DT_NEEDED) names.push_back(entry.d_un.d_val);
  }
  const std::vector<char> strings = read_at(file, file_offset_of(segments, strings_at), strings_bytes);
  std::vector<std::string> out;
  for (const std::uint64_t name : names) out.push_back(text_at(strings, name));
  return out;
}

bool has_go_section(std::ifstream& file, const Elf64_Ehdr& header) {
  const auto sections = read_table<Elf64_Shdr>(file, header.e_shoff, header.e_shnum);
  if (header.e_shstrndx >= sections.size()) return false;
  const Elf64_Shdr& names = sections[header.e_shstrndx];
  const std::vector<char> strings = read_at(file, names.sh_offset, names.sh_size);
  for (const Elf64_Shdr& section : sections) {
    const std::string name = text_at(strings, section.sh_name);
    if (name == ".go.buildinfo" || name == ".note.go.buildid" || name == ".gopclntab") return true;
  }
  return false;
}

}  // namespace

std::optional<ElfFacts> read_elf(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> start = read_at(file, 0, EI_NIDENT);
  if (start.empty() || std::memcmp(start.data(), ELFMAG, SELFMAG) != 0) return std::nullopt;
  ElfFacts facts;
  facts.is_64_bit = start[EI_CLASS] == ELFCLASS64;
  if (!facts.is_64_bit) return facts;
  const std::vector<Elf64_Ehdr> headers = read_table<Elf64_Ehdr>(file, 0, 1);
  if (headers.empty()) return std::nullopt;
  const Elf64_Ehdr& header = headers.front();
  facts.is_x86_64 = header.e_machine == EM_X86_64;
  facts.is_program = header.e_type == ET_EXEC || header.e_type == ET_DYN;
  const auto segments = read_table<Elf64_Phdr>(file, header.e_phoff, header.e_phnum);
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type == PT_INTERP) facts.loader = text_at(read_at(file, segment.p_offset, segment.p_filesz), 0);
    if (segment.p_type == PT_DYNAMIC) facts.needed = read_needed(file, segments, segment);
  }
  facts.is_go = has_go_section(file, header);
  return facts;
}

}  // namespace whimbrel::cli
