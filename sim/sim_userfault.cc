#include "sim/sim_userfault.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace whimbrel::sim {

SimUserfault::Ticket SimUserfault::new_ticket() {
  // Odd numbers: no object has such an address, so that tickets can be keys beside pointers.
  static std::uint64_t last = 1;
  last += 2;
  return Ticket{last};
}

void SimUserfault::wake_reader() {
  if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr) scheduler->wake_key(reader_key(), 1);
}

SimUserfault::Ticket SimUserfault::park(const Message& fault) {
  const Ticket ticket = new_ticket();
  waiters_.push_back({ticket, fault, false});
  wake_reader();
  return ticket;
}

bool SimUserfault::is_parked(Ticket ticket) const {
  return std::any_of(waiters_.begin(), waiters_.end(), [&](const Waiter& w) { return w.ticket == ticket; });
}

void SimUserfault::withdraw(Ticket ticket) {
  waiters_.remove_if([&](const Waiter& w) { return w.ticket == ticket; });
  if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr) scheduler->wake_key(key(ticket), 1);
}

bool SimUserfault::raise_bus_error(std::uint32_t thread, VirtualAddress address) {
  const auto it = std::find_if(waiters_.begin(), waiters_.end(), [&](const Waiter& waiter) {
    return waiter.message.thread == thread && PageIndex::of(waiter.message.address) == PageIndex::of(address);
  });
  if (it == waiters_.end()) return false;
  bus_errors_.push_back(it->ticket);
  withdraw(it->ticket);
  return true;
}

bool SimUserfault::ended_by_bus_error(Ticket ticket) { return bus_errors_.remove(ticket) > 0; }

void SimUserfault::interrupt_waiter(std::size_t n) {
  if (waiters_.empty()) return;
  withdraw(std::next(waiters_.begin(), static_cast<std::ptrdiff_t>(n % waiters_.size()))->ticket);
}

void SimUserfault::wake(PageRange range) {
  Scheduler* scheduler = Scheduler::current();
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    if (!range.contains(PageIndex::of(it->message.address))) {
      ++it;
      continue;
    }
    if (scheduler != nullptr) scheduler->wake_key(key(it->ticket), 1);
    it = waiters_.erase(it);
  }
}

SimUserfault::Ticket SimUserfault::begin_change() {
  const Ticket ticket = new_ticket();
  changes_.push_back(ticket);
  ++unread_;
  return ticket;
}

void SimUserfault::publish(Ticket change, const Message& event) {
  CHECK(is_unread(change));
  events_.push_back({change, event});
  wake_reader();
}

bool SimUserfault::is_unread(Ticket change) const {
  return std::find(changes_.begin(), changes_.end(), change) != changes_.end();
}

bool SimUserfault::readable() const {
  return !events_.empty() || std::any_of(waiters_.begin(), waiters_.end(), [](const Waiter& w) { return !w.read; });
}

std::size_t SimUserfault::read(std::span<Message> out) {
  std::size_t count = 0;
  for (Waiter& waiter : waiters_) {
    if (count == out.size()) return count;
    if (waiter.read) continue;
    waiter.read = true;
    out[count++] = waiter.message;
  }
  Scheduler* scheduler = Scheduler::current();
  while (count < out.size() && !events_.empty()) {
    out[count++] = events_.front().message;
    changes_.remove(events_.front().ticket);
    --unread_;
    if (scheduler != nullptr) scheduler->wake_key(key(events_.front().ticket), 1);
    events_.pop_front();
  }
  return count;
}

void SimUserfault::wait_until_woken(Ticket ticket) {
  while (is_parked(ticket)) (void)Scheduler::current()->block(key(ticket), -1, "page fault");
}

void SimUserfault::wait_until_read(Ticket change) {
  while (is_unread(change)) (void)Scheduler::current()->block(key(change), -1, "its event to be read");
}

}  // namespace whimbrel::sim
