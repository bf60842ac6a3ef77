// SimUserfault: the descriptor's two queues, threads that wait for a fault to be resolved and address-space events that
// nobody has read yet, with the order in which the kernel hands them out.
#pragma once

#include <deque>
#include <list>
#include <span>

#include "port/mmu.h"
#include "sim/scheduler.h"

namespace whimbrel::sim {

class SimUserfault {
 public:
  enum class Ticket : std::uint64_t {};

  // ---- faults ------------------------------------------------------------------------------------------------
  // The thread waits from now on; its message becomes readable.
  Ticket park(const Message& fault);
  [[nodiscard]] bool is_parked(Ticket ticket) const;
  // As a signal does: the thread stops waiting without anything having been resolved.
  void withdraw(Ticket ticket);
  // SIGBUS for the access that this thread waits with. False: it does not wait there.
  bool raise_bus_error(std::uint32_t thread, VirtualAddress address);
  // Whether the wait with this ticket was ended by SIGBUS; asked once.
  [[nodiscard]] bool ended_by_bus_error(Ticket ticket);
  // The n-th of those who wait (modulo their number) gets a signal; nothing when nobody waits.
  void interrupt_waiter(std::size_t n);
  // Everybody who waits in the range goes on, read or not: an unread message is withdrawn.
  void wake(PageRange range);
  [[nodiscard]] std::size_t parked() const { return waiters_.size(); }

  // ---- events ------------------------------------------------------------------------------------------------
  // From begin_change() until its message has been read every page operation refuses.
  Ticket begin_change();
  void publish(Ticket change, const Message& event);
  [[nodiscard]] bool is_unread(Ticket change) const;
  [[nodiscard]] bool event_pending() const { return unread_ != 0; }

  // ---- the reader --------------------------------------------------------------------------------------------
  [[nodiscard]] bool readable() const;
  // Faults in order of arrival, then events: faults overtake events.
  [[nodiscard]] std::size_t read(std::span<Message> out);

  // What a fiber sleeps on until its ticket is dealt with, and the reader until something is readable.
  [[nodiscard]] static const void* key(Ticket ticket) { return reinterpret_cast<const void*>(ticket); }
  [[nodiscard]] const void* reader_key() const { return this; }
  // Sleeps in the scheduler while the ticket is open.
  void wait_until_woken(Ticket ticket);
  void wait_until_read(Ticket change);

 private:
  struct Waiter {
    Ticket ticket;
    Message message;
    bool read = false;
  };
  struct Event {
    Ticket ticket;
    Message message;
  };
  [[nodiscard]] static Ticket new_ticket();
  void wake_reader();

  std::list<Waiter> waiters_;  // in order of arrival
  std::deque<Event> events_;
  std::list<Ticket> changes_;  // begun, not read
  std::size_t unread_ = 0;
  std::list<Ticket> bus_errors_;
};

}  // namespace whimbrel::sim
