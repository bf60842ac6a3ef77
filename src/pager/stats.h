// PagerStats: what a pager has done and is doing, as plain 64-bit numbers that may lie in a memory shared with a
// reader.
//
// Written with relaxed stores by the pager's threads, read by anybody at any time. All zero is a valid start. Numbers
// are base pages, bytes or nanoseconds, as their names say. A shape of its own, so that the pager knows nothing of
// files: whoever publishes it elsewhere copies.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace whimbrel {

inline constexpr std::size_t kWaitBuckets = 32;

struct PagerStats {
  using Number = std::atomic<std::uint64_t>;

  // ---- now ----
  Number resident_pages;        // program memory in RAM, uncompressed
  Number resident_limit_pages;  // what it may be at this moment (floats when there is a total); 0: no limit
  Number fixed_pages;           // of resident: cannot leave (locked, excluded, not ours to move)
  Number watched_pages;         // addresses under management
  Number total_bytes;           // resident + contents on the device + staging + engine
  Number kept_copies;           // pages in RAM whose last contents the device has as well

  // ---- highest so far ----
  Number peak_resident_pages;
  Number peak_total_bytes;
  Number total_would_do;  // bytes: what RAM in all would have had to be allowed; 0: what is allowed does

  // ---- since the start ----
  Number pages_out;                                 // left for the device
  Number unchanged_out;                             // of pages_out: needed no storing
  Number pages_home;                                // came home
  Number faults;                                    // touches of memory that was away
  Number holes;                                     // touches of fresh memory
  Number zero_filled_pages;                         // given for them
  Number huge_filled;                               // of these: whole 2 MiB pages
  Number wait_ns;                                   // serving faults and holes, from the moment they were taken up
  std::array<Number, kWaitBuckets> wait_histogram;  // bucket n: [2^n, 2^(n+1)) nanoseconds

  Number windows;             // fetches of more than the page touched
  Number window_pages;        // pages they brought besides the one touched
  Number window_hits;         // windows the program walked to the end of
  Number window_waste_pages;  // pages of windows it left before their end, as far as can be seen

  // ---- why things went as they did ----
  Number back_pressure;   // faults that had to make room first
  Number over_limit;      // faults served although no room could be made
  Number refused_pages;   // would not move: pinned, shared after a fork, special
  Number control_blocks;  // thread control blocks and arena headers recognised and pinned
  Number unshared_pages;  // copy-on-write sharing broken to be able to move them
  Number device_full;     // evictions given up because the device had no place
  Number device_errors;   // failed stores
  Number load_errors;     // failed loads: the access got SIGBUS
  Number scans;           // walks over the mappings
  Number recounts;        // walks over the resident pages
  Number forks;           // parked for a fork
  Number handed_over;     // victims that the fault thread took and another thread stored
  Number huge_home;       // fetches of a whole 2 MiB unit into one huge page
  Number helped_pages;    // of large fetches: loaded by the background thread meanwhile
};

}  // namespace whimbrel
