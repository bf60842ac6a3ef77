// hostile CASE [ARGS...]: runs one case; `hostile --list` names them all.

#include <stdio.h>
#include <string.h>

#include "hostile.h"

static const struct Case kCases[] = {
    {"close-range", case_close_range, "closes every descriptor with close_range(3, ~0)"},
    {"close-all", case_close_all, "closes descriptors one by one, again and again"},
    {"pipe-eof", case_pipe_eof, "an inherited pipe reaches end of file while the program runs on"},
    {"few-descriptors", case_few_descriptors, "lowers RLIMIT_NOFILE to 3 before needing memory"},
    {"daemon", case_daemon, "a child daemonises, its parent ends, it goes on under pressure"},
    {"daemon-detached", case_daemon_detached, "the program itself daemonises and writes its verdict to a file"},
    {"setuid", case_setuid, "drops root for good, all its threads too"},
    {"setuid-early", case_setuid_early, "drops root while it is still small"},
    {"setuid-raw", case_setuid_raw, "drops root by system calls, past libc"},
    {"seccomp", case_seccomp, "forbids itself ioctl, mmap and userfaultfd"},
    {"crash-handlers", case_crash_handlers, "own SIGSEGV, SIGBUS, SIGCHLD handlers on a managed alternate stack"},
    {"signal-rain", case_signal_rain, "timers and signals of many kinds while threads wait for pages"},
    {"fork-threads", case_fork_threads, "forks with idle threads, caches, FILEs; the child verifies everything"},
    {"fork-writers", case_fork_writers, "forks while other threads write; the child sees one instant"},
    {"fork-chain", case_fork_chain, "children of children, parent and child both go on writing"},
    {"raw-fork", case_raw_fork, "fork by system call: right or stopped, never wrong"},
    {"wipe-on-fork", case_wipe_on_fork, "MADV_WIPEONFORK before and after memory was moved out"},
    {"dont-fork", case_dont_fork, "MADV_DONTFORK memory is absent in the child, everything else intact"},
    {"spawn", case_spawn, "vfork, posix_spawn, system, popen with arguments that are away"},
    {"exec-thread", case_exec_thread, "exec from a thread that is not the first"},
    {"pthread-exit", case_pthread_exit, "the main thread leaves, the last thread ends the process"},
    {"thread-churn", case_thread_churn, "300 x 16 threads made and joined, with forks between"},
    {"mlockall", case_mlockall, "locks all memory, then unlocks it"},
    {"address-storm", case_address_storm, "4 threads mremap, munmap, MAP_FIXED, DONTNEED against a model"},
    {"dontneed", case_dontneed, "DONTNEED, check zero, refill, while pages move"},
    {"brk", case_brk, "the heap grows and shrinks six times"},
    {"reserve-commit", case_reserve_commit, "PROT_NONE reservation opened in steps, closed, opened again"},
    {"shared", case_shared, "shared anonymous memory between processes beside private memory"},
    {"syscall-buffers", case_syscall_buffers, "system calls read from and write to memory that is away"},
    {"address-limit", case_address_limit, "runs under a tight RLIMIT_AS"},
    {"io-uring", case_io_uring, "fixed buffers of io_uring lie in memory that moves"},
    {"direct-io", case_direct_io, "O_DIRECT from and into memory that is away"},
    {"vmsplice", case_vmsplice, "pages leave while a pipe holds them"},
    {"zerocopy", case_zerocopy, "pages leave while a socket holds them (MSG_ZEROCOPY)"},
    {"chroot", case_chroot, "goes where there is no /proc, and forks there"},
    {"many-maps", case_many_maps, "uses up vm.max_map_count"},
    {"seccomp-request", case_seccomp_request, "forbids one ioctl request to every thread: move, zero, wake, register"},
    {"advice", case_advice, "every piece of advice that madvise knows"},
    {"huge-switch", case_huge_switch, "huge pages on and off, by advice and by prctl"},
    {"rights-storm", case_rights_storm, "3 threads change rights by mprotect all the time"},
    {"thread-storm", case_thread_storm, "ten thousand threads come and go"},
    {"group-limit", case_group_limit, "a memory control group's limit is reached while memory is fetched; with kill: and cannot be held"},
    {"end", case_end, "ends by: exit7, quick7, abort, dump, segv, term, kill, alarm"},
    {"pipe-writer", helper_pipe_writer, "(helper of pipe-eof)"},
    {"verify", helper_verify, "(helper of exec-thread and spawn)"},
};

int main(int argc, char** argv) {
  size_t count = sizeof kCases / sizeof kCases[0];
  if (argc >= 2 && strcmp(argv[1], "--list") == 0) {
    for (size_t i = 0; i < count; ++i) printf("%-16s %s\n", kCases[i].name, kCases[i].what);
    return 0;
  }
  for (size_t i = 0; argc >= 2 && i < count; ++i) {
    if (strcmp(argv[1], kCases[i].name) == 0) return kCases[i].run(argc - 1, argv + 1);
  }
  fprintf(stderr, "usage: hostile CASE [ARGS...]; hostile --list names the cases\n");
  return 2;
}
