// Everything at once through the C interface: threads that write memory and know what they wrote, one that unmaps, moves,
// protects and discards, two that call the protocol in every way they can think of, and forks in between. Nothing may be
// lost, torn or stale, and afterwards no lock, reference, frame or device page may be missing.
//
// WHIMBREL_STORM_SECONDS (default 6) and WHIMBREL_STORM_SEED (default: printed) choose how long and which.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <random>
#include <thread>

#include "capi/test_driver.h"

namespace whimbrel::capi {
namespace {

constexpr std::size_t kShared = 4 * HPAGE_PMD_NR;  // pages that writers share, half of them in huge pages
constexpr std::size_t kOwn = HPAGE_PMD_NR;         // pages of the thread that changes mappings, and where it moves them
constexpr std::size_t kWriters = 2;
constexpr std::size_t kLanding = 2048;
constexpr int kCollapse = 25;  // MADV_COLLAPSE

unsigned long from_environment(const char* name, unsigned long otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoul(text, nullptr, 10);
}

class Storm {
 public:
  Storm(mm_struct* mm_, unsigned seed_)
      : mm(mm_), seed(seed_), driver(mm_, 16), shared(mm_, kShared * PAGE_SIZE), own(mm_, kOwn * PAGE_SIZE),
        other(mm_, kOwn * PAGE_SIZE) {
    madvise(shared.at(kShared / 2), kShared / 2 * PAGE_SIZE, MADV_HUGEPAGE);
    EXPECT_EQ(mmu_interval_notifier_insert(&sub, mm, 0, 1ul << 47, &kOps), 0);
  }
  ~Storm() { mmu_interval_notifier_remove(&sub); }

  void run(std::chrono::seconds time) {
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < kWriters; ++t) threads.emplace_back([this, t] { write(t); });
    for (unsigned t = 0; t < 2; ++t) threads.emplace_back([this, t] { call(t); });
    threads.emplace_back([this] { reshape(); });
    const auto end = std::chrono::steady_clock::now() + time;
    while (std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(700));
      look_from_a_child();
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
  }

  std::atomic<unsigned long> wrong{0}, moved{0}, refused{0}, forks{0}, exclusives{0}, splits{0};

 private:
  // Tells what was wrong, the first few times.
  void expect(bool right, const char* what, long detail = 0) {
    if (right || ++wrong > 10) return;
    std::printf("wrong: %s (%ld)\n", what, detail);
  }

  // A writer's word names page, writer and count; zero before the first.
  static unsigned long word(std::size_t page, std::size_t t, unsigned long n) { return n == 0 ? 0 : page << 44 | t << 40 | n; }
  volatile unsigned long* place(std::size_t page, std::size_t t) {
    return reinterpret_cast<volatile unsigned long*>(shared.at(page)) + t * 100;
  }

  void write(std::size_t t) {
    std::mt19937_64 random(seed + t);
    std::vector<unsigned long> known(kShared);
    while (!stop) {
      const std::size_t page = random() % kShared;
      const unsigned long seen = *place(page, t);
      expect(seen == word(page, t, known[page]), "a writer's word", static_cast<long>(seen - word(page, t, known[page])));
      if (random() % 2 != 0) *place(page, t) = word(page, t, ++known[page]);
    }
    for (std::size_t page = 0; page < kShared; ++page) {
      expect(*place(page, t) == word(page, t, known[page]), "a writer's last word", static_cast<long>(page));
    }
  }

  // Whatever a child sees was written by the right writer to the right page.
  void look_from_a_child() {
    const pid_t child = fork();
    if (child == 0) {
      bool good = true;
      for (std::size_t page = 0; page < kShared; ++page) {
        for (std::size_t t = 0; t < kWriters; ++t) {
          const unsigned long seen = *place(page, t);
          good = good && (seen == 0 || seen >> 40 == word(page, t, 1) >> 40);
        }
      }
      _exit(good && whimbrel_current_mm() == nullptr ? 0 : 1);
    }
    int status = 0;
    ASSERT_GT(child, 0);
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    ++forks;
  }

  // Memory that changes its shape; its one user knows what is in it.
  void reshape() {
    std::mt19937_64 random(seed + 100);
    std::vector<unsigned char> known(kOwn);
    char* at = own.at();
    char* away = other.at();
    while (!stop) {
      const std::size_t page = random() % kOwn, n = 1 + random() % std::min<std::size_t>(64, kOwn - page);
      char* part = at + page * PAGE_SIZE;
      const std::size_t bytes = n * PAGE_SIZE;
      switch (random() % 8) {
        case 0:  // gone and new, in one call: in a hole somebody else's memory could appear
          mmap(part, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          std::fill_n(known.begin() + static_cast<long>(page), n, 0);
          break;
        case 1:
          madvise(part, bytes, MADV_DONTNEED);
          std::fill_n(known.begin() + static_cast<long>(page), n, 0);
          break;
        case 2:  // all of it to the other place; what was there goes, what it leaves stays mapped and empty
          if (mremap_all(at, away)) std::swap(at, away);
          if (random() % 2 != 0) {
            mmap(away, kOwn * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          }
          break;
        case 3:  // read while it may not be written
          mprotect(part, bytes, PROT_READ);
          check(at, page, n, known, "read-only contents");
          mprotect(part, bytes, PROT_READ | PROT_WRITE);
          break;
        case 4:
          check(at, page, n, known, "contents");
          break;
        default:
          for (std::size_t i = page; i < page + n; ++i) {
            known[i] = static_cast<unsigned char>(random());
            std::memset(at + i * PAGE_SIZE, known[i], PAGE_SIZE);
          }
      }
    }
    check(at, 0, kOwn, known, "last contents");
    mprotect(at, kOwn * PAGE_SIZE, PROT_READ | PROT_WRITE);
  }
  // mremap moves one mapping at a time.
  bool mremap_all(char* from, char* to) {
    for (std::size_t done = 0; done < kOwn;) {
      vm_area_struct vma{};
      const auto start = reinterpret_cast<unsigned long>(from + done * PAGE_SIZE);
      EXPECT_EQ(whimbrel_find_vma(mm, start, &vma), 0) << whimbrel_error();
      const std::size_t bytes = std::min<std::size_t>(vma.vm_end - start, (kOwn - done) * PAGE_SIZE);
      char* target = to + done * PAGE_SIZE;
      constexpr int kHow = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
      if (mremap(from + done * PAGE_SIZE, bytes, bytes, kHow, target) != target) {
        ADD_FAILURE() << "mremap: " << errno;
        return false;
      }
      done += bytes / PAGE_SIZE;
    }
    return true;
  }
  void check(const char* at, std::size_t page, std::size_t n, const std::vector<unsigned char>& known, const char* what) {
    for (std::size_t i = page; i < page + n; ++i) {
      for (const std::size_t k : {0ul, 1234ul, PAGE_SIZE - 1}) {
        const auto seen = static_cast<unsigned char>(at[i * PAGE_SIZE + k]);
        expect(seen == known[i], what, seen << 8 | known[i]);
      }
    }
  }

  // ---- every call there is ------------------------------------------------------------------------------------------------

  struct Range {
    unsigned long start;
    std::size_t pages;
  };
  Range pick(std::mt19937_64& random) {
    const unsigned long which = random() % 6;
    const Memory& memory = which < 4 ? shared : which == 4 ? own : other;
    const std::size_t all = memory.bytes() / PAGE_SIZE;
    if (random() % 2 != 0) return {memory.address(random() % (all / HPAGE_PMD_NR) * HPAGE_PMD_NR), HPAGE_PMD_NR};
    const std::size_t page = random() % all;
    return {memory.address(page), 1 + random() % std::min<std::size_t>(100, all - page)};
  }

  void call(unsigned t) {
    std::mt19937_64 random(seed + 200 + t);
    while (!stop) {
      const Range range = pick(random);
      switch (random() % 12) {
        case 0: case 1: case 2: migrate(range, random, true, 0); break;
        case 3: migrate(range, random, false, 0); break;
        case 4: migrate(range, random, true, 1 + random() % 3); break;
        case 5: migrate(range, random, false, 1 + random() % 3); break;
        case 6: case 7: evict(random); break;
        case 8: exclusive(range, random); break;
        case 9: look(range, random); break;
        case 10: split(random); break;
        default: expect(whimbrel_bring_home(mm, range.start, range.pages * PAGE_SIZE) >= 0, "bring_home");
      }
    }
  }

  // `mischief`: 1 without the pages step, 2 with some destinations taken back, 3 without destinations.
  void migrate(Range range, std::mt19937_64& random, bool out, unsigned long mischief) {
    TestDriver::Migration m;
    driver.prepare(m, range.start, range.pages,
                   (out ? static_cast<unsigned long>(MIGRATE_VMA_SELECT_SYSTEM) : driver.select()) |
                       (random() % 3 != 0 ? static_cast<unsigned long>(MIGRATE_VMA_SELECT_COMPOUND) : 0));
    if (migrate_vma_setup(&m.args) != 0) {  // the mapping has changed meanwhile
      ++refused;
      return;
    }
    if (mischief != 3) driver.fill_destinations(m, out, random() % 3 != 0);
    for (unsigned long i = 0; mischief == 2 && i < m.args.npages; ++i) {
      page* to = migrate_pfn_to_page(m.dst[i]);
      if (to == nullptr || random() % 2 != 0) continue;
      m.dst[i] = 0;
      unlock_page(to);
      put_page(to);
    }
    if (mischief != 1) migrate_vma_pages(&m.args);
    if (mischief != 1) moved += TestDriver::migrated(m);
    migrate_vma_finalize(&m.args);
  }

  void evict(std::mt19937_64& random) {
    const unsigned long first = driver.pgmap.range.start / PAGE_SIZE + random() % 16 * HPAGE_PMD_NR;
    TestDriver::Migration m;
    m.src.assign(HPAGE_PMD_NR, 0);
    m.dst.assign(HPAGE_PMD_NR, 0);
    m.args.npages = HPAGE_PMD_NR;
    migrate_device_range(m.src.data(), first, HPAGE_PMD_NR);
    driver.fill_destinations(m, false, random() % 4 != 0);
    migrate_device_pages(m.src.data(), m.dst.data(), HPAGE_PMD_NR);
    moved += TestDriver::migrated(m);
    migrate_device_finalize(m.src.data(), m.dst.data(), HPAGE_PMD_NR);
  }

  void exclusive(Range range, std::mt19937_64& random) {
    folio* held = nullptr;
    const page* p = make_device_exclusive(mm, range.start, this, &held);
    if (IS_ERR(p)) {
      const long error = PTR_ERR(p);
      expect(error == -EFAULT || error == -EBUSY || error == -ENOMEM, "make_device_exclusive", error);
      return;
    }
    ++exclusives;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
    folio_unlock(held);
    folio_put(held);
  }

  void look(Range range, std::mt19937_64& random) {
    std::vector<unsigned long> words(range.pages);
    hmm_range look{};
    look.notifier = &sub;
    look.start = range.start;
    look.end = range.start + range.pages * PAGE_SIZE;
    look.hmm_pfns = words.data();
    look.default_flags = random() % 2 != 0 ? HMM_PFN_REQ_FAULT : 0;
    look.dev_private_owner = random() % 2 != 0 ? &driver : nullptr;
    look.notifier_seq = mmu_interval_read_begin(&sub);
    const int error = hmm_range_fault(&look);
    expect(error == 0 || error == -EBUSY || error == -EFAULT || error == -EPERM, "hmm_range_fault", error);
  }

  // Any unit that is out, by its frame number.
  void split(std::mt19937_64& random) {
    const unsigned long unit = kShared / 2 / HPAGE_PMD_NR + random() % (kShared / 2 / HPAGE_PMD_NR);
    (void)madvise(shared.at(unit * HPAGE_PMD_NR), HPAGE_PMD_SIZE, kCollapse);  // huge again, perhaps
    migrate({shared.address(unit * HPAGE_PMD_NR), HPAGE_PMD_NR}, random, true, 0);
    for (unsigned long k = 0; k < 16; ++k) {
      auto* f = reinterpret_cast<folio*>(pfn_to_page(driver.pgmap.range.start / PAGE_SIZE + k * HPAGE_PMD_NR));
      if (!folio_try_get(f)) continue;
      if (folio_trylock(f)) {
        if (folio_order(f) != 0 && split_folio(f) == 0) ++splits;
        folio_unlock(f);
      }
      folio_put(f);
    }
  }

  static bool invalidate(mmu_interval_notifier* s, const mmu_notifier_range*, unsigned long cur_seq) {
    mmu_interval_set_seq(s, cur_seq);
    return true;
  }
  static constexpr mmu_interval_notifier_ops kOps{.invalidate = invalidate};

  mm_struct* const mm;
  const unsigned seed;

 public:
  TestDriver driver;

 private:
  Memory shared, own, other;
  mmu_interval_notifier sub{};
  std::atomic<bool> stop{false};
};

TEST(StormTest, NothingIsLostWhateverIsCalledWhen) {
  const auto seconds = std::chrono::seconds(from_environment("WHIMBREL_STORM_SECONDS", 6));
  const auto seed = static_cast<unsigned>(from_environment("WHIMBREL_STORM_SEED", std::random_device{}()));
  std::printf("seed %u, %ld s\n", seed, static_cast<long>(seconds.count()));
  mm_struct* mm = nullptr;
  whimbrel_options options{};
  options.struct_size = sizeof options;
  options.threads = 3;
  options.landing_bytes = kLanding * PAGE_SIZE;
  ASSERT_EQ(whimbrel_start(&options, &mm), 0) << whimbrel_error();
  {
    Storm storm(mm, seed);
    storm.run(seconds);
    EXPECT_EQ(storm.wrong, 0u) << "seed " << seed;
    EXPECT_GT(storm.moved, 100u);  // slow machines, slow sanitizers
    EXPECT_GT(storm.forks, 0u);
    std::printf("%lu pages moved, %d faults, %lu setups refused, %lu forks, %lu exclusive, %lu splits by hand\n",
                storm.moved.load(), storm.driver.faults.load(), storm.refused.load(), storm.forks.load(),
                storm.exclusives.load(), storm.splits.load());
    ASSERT_GE(whimbrel_bring_home(mm, 0, 1ul << 47), 0) << whimbrel_error();
    EXPECT_EQ(storm.driver.in_use_settling_at(0), 0u);
  }
  // Every frame is back.
  std::vector<folio*> frames;
  while (folio* f = folio_alloc(GFP_HIGHUSER_MOVABLE, 0)) frames.push_back(f);
  EXPECT_EQ(frames.size(), kLanding);
  std::size_t units = 0;
  while (folio* f = folio_alloc(GFP_HIGHUSER_MOVABLE, HPAGE_PMD_ORDER)) frames.push_back(f), ++units;
  EXPECT_EQ(units, 16u);
  for (folio* f : frames) folio_put(f);
  EXPECT_EQ(whimbrel_stop(mm), 0) << whimbrel_error();
}

}  // namespace
}  // namespace whimbrel::capi
