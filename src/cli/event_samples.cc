// EventStream: the state of each process and session ten times a second, and its mappings when they have changed.
#include <algorithm>
#include <functional>

#include "cli/event_stream.h"
#include "cli/event_text.h"
#include "report/process_mappings.h"

namespace whimbrel::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kPage = 4096;
constexpr std::int64_t kMappingsPause = 1'000'000'000;
// Of more than so many the largest are named.
constexpr std::size_t kMostMappings = 512;

}  // namespace

void EventStream::sample() {
  if (output_ < 0) return;
  const StatsLayout& layout = stats_.layout();
  const std::uint32_t used = std::min<std::uint32_t>(layout.header.next_slot, static_cast<std::uint32_t>(kStatsSlots));
  const bool mappings = next_mappings_ <= static_cast<std::int64_t>(now_ns());
  if (mappings) next_mappings_ = static_cast<std::int64_t>(now_ns()) + kMappingsPause;
  // A process that became another program has several slots, and so has one with sessions, by their numbers.
  const auto whose = [&layout](std::uint32_t i) {
    return std::uint64_t{layout.slots[i].pid} << 32 | layout.slots[i].session;
  };
  std::unordered_map<std::uint64_t, std::uint32_t> latest;
  for (std::uint32_t i = 0; i < used; ++i) latest[whose(i)] = i;
  for (std::uint32_t i = 0; i < used; ++i) {
    const StatsSlot& slot = layout.slots[i];
    const EngineMode mode = slot.mode;
    if (slot.state != SlotState::kLive || (mode != EngineMode::kManaged && mode != EngineMode::kEnded)) continue;
    // What the dead have left is said once.
    const bool dead = mode == EngineMode::kEnded || latest[whose(i)] != i || is_gone(slot.pid);
    if (!dead) sampled_last_.erase(i);
    else if (!sampled_last_.insert(i).second) continue;
    const PagerStats& pager = slot.pager;
    std::string& out = buffer_;
    put_number(out, "{\"event\":\"sample\",\"time_ns\":", now_ns());
    put_number(out, ",\"pid\":", slot.pid);
    put_number(out, ",\"image\":", i);
    put_number(out, ",\"resident_bytes\":", pager.resident_pages * kPage);
    put_number(out, ",\"limit_bytes\":", pager.resident_limit_pages * kPage);
    put_number(out, ",\"away_bytes\":", slot.stored_pages * kPage);
    put_number(out, ",\"compressed_bytes\":", slot.compressed_bytes);
    put_number(out, ",\"held_bytes\":", slot.held_bytes);
    put_number(out, ",\"total_bytes\":", pager.total_bytes);
    put_number(out, ",\"pages_out\":", pager.pages_out);
    put_number(out, ",\"unchanged_out\":", pager.unchanged_out);
    put_number(out, ",\"pages_home\":", pager.pages_home);
    put_number(out, ",\"faults\":", pager.faults);
    put_number(out, ",\"zero_faults\":", pager.holes);
    put_number(out, ",\"wait_ns\":", pager.wait_ns);
    put_number(out, ",\"back_pressure\":", pager.back_pressure);
    put_number(out, ",\"over_limit\":", pager.over_limit);
    put_number(out, ",\"refused_pages\":", pager.refused_pages);
    out += "}\n";
    if (mappings && !dead) sample_mappings(slot.pid);
  }
}

void EventStream::sample_mappings(std::uint32_t pid) {
  auto found = report::private_mappings(pid);
  const std::size_t left_out = found.size() > kMostMappings ? found.size() - kMostMappings : 0;
  if (left_out != 0) {
    std::nth_element(found.begin(), found.begin() + kMostMappings, found.end(),
                     [](const auto& a, const auto& b) { return a.length > b.length; });
    found.resize(kMostMappings);
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.address < b.address; });
  }
  Json list = Json::array();
  for (const auto& [address, length, name] : found) list.push_back({address, length, name});
  const std::string text = list.dump(-1, ' ', false, Json::error_handler_t::replace);
  const std::size_t hash = std::hash<std::string>()(text);
  if (found.empty() || mappings_[pid] == hash) return;
  mappings_[pid] = hash;
  put_number(buffer_, "{\"event\":\"mappings\",\"time_ns\":", now_ns());
  put_number(buffer_, ",\"pid\":", pid);
  put_number(buffer_, ",\"left_out\":", left_out);
  buffer_ += ",\"mappings\":" + text + "}\n";
}

}  // namespace whimbrel::cli
