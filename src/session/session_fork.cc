// Sessions over a fork. The engines have a protocol for it; here the locks of program threads are held, so that the
// child's copy of the ledgers is whole.
#include "session/session.h"

using namespace whimbrel;

void whimbrel_session::before_fork() noexcept NO_THREAD_SAFETY_ANALYSIS {
  session::SessionList& list = session::session_list();
  list.mutex.lock();
  for (whimbrel_session* session : list.open) {
    if (session != nullptr) session->mutex_.lock();
  }
  // Whoever holds such a lock may be waiting for an order, which a closed engine would not carry out: so these come
  // last.
  for (whimbrel_session* session : list.open) {
    if (session != nullptr) session->engine_.prepare_fork();
  }
}

void whimbrel_session::after_fork_in_parent() noexcept NO_THREAD_SAFETY_ANALYSIS {
  session::SessionList& list = session::session_list();
  for (whimbrel_session* session : list.open) {
    if (session == nullptr) continue;
    session->engine_.after_fork_in_parent();
    session->mutex_.unlock();
  }
  list.mutex.unlock();
}

void whimbrel_session::after_fork_in_child() noexcept NO_THREAD_SAFETY_ANALYSIS {
  session::SessionList& list = session::session_list();
  for (whimbrel_session* session : list.open) {
    if (session == nullptr) continue;
    session->mutex_.reset_after_fork();
    session->engine_.after_fork_in_child();
  }
  list.mutex.reset_after_fork();
}
