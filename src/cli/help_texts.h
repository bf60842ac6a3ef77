// What --help says after the options of each command.
#pragma once

namespace whimbrel::cli {

inline constexpr const char* kRunFooter = R"(
Sizes are bytes, or a number with K, M, G or T (powers of 1024): 64M, 1.5G.
Without --ram, --total is split between resident pages and store as the data compresses; without both, half of the memory that is available now.
Without --total, only uncompressed memory is limited: the store grows as it must.

The summary goes to standard error when the program has ended. whimbrel ends the way the program did: with its exit
status, or by its signal. Its own: 2 bad command line, 125 whimbrel cannot work here, 126 the program cannot be managed,
127 no such program.

Examples:
  whimbrel run --ram 256M -- sort -S 1G big.txt
  whimbrel run --total 1G --device lz4 -- python3 job.py
  whimbrel run --ram 64M --quiet --stats run.json -- redis-server
  whimbrel run --ram 256M --events run.events -- python3 job.py
  whimbrel run --ram 256M --sample-stacks -- ./simulation)";

inline constexpr const char* kWatchFooter = R"(
For programs that open sessions themselves (whimbrel.h, whimbrel.hpp, Python): nothing is managed but what they manage. While it
runs, whimbrel top shows its sessions; --events records what moves and why, for report, map and replay. All programs that it
starts are looked at too. Ends the way the program did.

Examples:
  whimbrel watch -- python3 examples/matrix_job.py
  whimbrel watch --events job.events -- python3 examples/matrix_job.py)";

inline constexpr const char* kDoctorFooter = R"(
Exit status: 0 everything works, 1 works with restrictions, 2 cannot be used.

Examples:
  whimbrel doctor
  whimbrel doctor /usr/bin/python3)";

inline constexpr const char* kTopFooter = R"(
Shows the runs of this user; of every user, for root. In a terminal it renews itself until q or Ctrl-C; into a pipe or file it
prints once. Rates are those since the last look. Keys: Tab picks a run (the one with the >), + and - give it a tenth more or less
of its budget, d asks for another device, q ends.

Columns: MODE managed, waiting (below half of its budget: nothing to do yet) or unmanaged; RESIDENT memory in RAM, uncompressed,
of LIMIT; AWAY memory on the device, which takes STORE there; FAULTS/s touches of memory that was away; WAIT share of the time
spent serving faults; 99% of the waits so far were shorter than P99.

Examples:
  whimbrel top
  whimbrel top --once --json
  whimbrel top --metrics /var/lib/node_exporter/whimbrel.prom --interval 15)";

inline constexpr const char* kReplayFooter = R"(
Answers from a recorded run, without running anything: how often the program would have waited, and how long, with other budgets
and other ways of choosing what leaves. The waiting time comes from what faults cost in the recording.

A recording knows only the touches of memory that was away. So record with little memory: budgets above the recorded one are
answered well, below it the numbers are lower bounds (marked ">").

Policies: second-chance (the engine's), fifo, random, and clairvoyant, which knows the future: a bound for all others.

Examples:
  whimbrel run --ram 128M --events run.events -- python3 job.py
  whimbrel replay run.events
  whimbrel replay run.events --ram 128M,256M,512M --policy second-chance,clairvoyant)";

inline constexpr const char* kReportFooter = R"(
One HTML file that needs nothing else: RAM, store, faults and waiting over time, why the program waited and what would help, other
budgets, the hottest regions, and a map of its memory with a time slider.

Examples:
  whimbrel run --ram 128M --events run.events -- python3 job.py
  whimbrel report run.events
  whimbrel report run.events --output job.html)";

inline constexpr const char* kMapFooter = R"(
Of a recording: what is in RAM, what is away, what was fetched often; when it had most, or with --html at any time. The recording may still
be going on. Of a process: what is in RAM, as the kernel tells; without root for your own.

Examples:
  whimbrel map run.events
  whimbrel map run.events --html map.html
  whimbrel map $(pidof python3) --svg map.svg)";

inline constexpr const char* kBudgetFooter = R"(
The number is that of `whimbrel run` or of any process in it; the budget holds for each process of the run, also for those to come.
Sizes as for run; `none` lifts a limit while the other one stays. Exit status 1: set, but not reached within the time.

Examples:
  whimbrel budget $(pidof -s python3)
  whimbrel budget 4711 --ram 512M
  whimbrel budget 4711 --ram none --total 2G)";

inline constexpr const char* kDeviceFooter = R"(
What is stored from now on goes to the new device, and what lies on the one before moves there while the program goes on; then that is
closed. Holds for each process of the run, also for those to come. To add a tier or a copy, or to take one away, name what is to
be in the end. A process that cannot have the device keeps its own. Exit status 1: not everything has moved within the time.

Examples:
  whimbrel device 4711
  whimbrel device 4711 --to file:/var/tmp
  whimbrel device 4711 --to chain:lz4@256M,zstd)";

inline constexpr const char* kAppFooter = R"(
Defaults for the options can stand in ~/.config/whimbrel/config.toml, or for all users in /etc/whimbrel/config.toml, with a section
for each command; WHIMBREL_CONFIG names another file, or none when it is empty:

  [run]
  ram = "512M"
  device = "chain:lz4@256M,zstd"

  [top]
  interval = 2)";

}  // namespace whimbrel::cli
