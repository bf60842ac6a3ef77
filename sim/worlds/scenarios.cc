#include "sim/worlds/scenarios.h"

#include "base/check.h"

namespace whimbrel::sim {
namespace {

constexpr std::uint32_t kReadWrite = Mapping::kReadable | Mapping::kWritable;

// The place of a scenario: small, pages 0..3; huge, one unit of 512 pages of which a few words are used.
struct Place {
  bool huge;
  [[nodiscard]] PageRange all() const { return World::pages(0, huge ? kPagesPerHuge : 4); }
  // A part that cuts a huge unit.
  [[nodiscard]] PageRange part() const { return World::pages(1, 2); }
  [[nodiscard]] PageIndex elsewhere() const { return World::kElsewhere; }
};

VirtualAddress moved(VirtualAddress address) {
  const std::uint64_t distance = World::kElsewhere.address().raw() - World::kHome.address().raw();
  return VirtualAddress(address.raw() + distance);
}

struct Named {
  const char* name;
  std::function<void(World&, Place)> run;
};

// ---- where the pages are at the start ---------------------------------------------------------------------------

void map_and_write(World& world, Place place) {
  world.memory().mmap(place.all(), kReadWrite | (place.huge ? Mapping::kHugeAdvised : Mapping::kNoHuge));
  for (std::uint64_t i = 0; i < 3; ++i) world.write(1, World::word(i));  // page 3 stays a hole, if small
}

const Named kStarts[] = {
    {"resident", map_and_write},
    {"away",
     [](World& world, Place place) {
       map_and_write(world, place);
       CHECK(world.driver().to_device(place.all(), place.huge, SimDriver::Holes::kPopulate) != 0);
     }},
    {"mixed",
     [](World& world, Place place) {
       // Page 1 away, page 2 shows the zero page, the rest resident. A huge unit: away, and in base pages.
       map_and_write(world, place);
       if (place.huge) {
         CHECK(world.driver().to_device(place.all(), false, SimDriver::Holes::kLeave) != 0);
         return;
       }
       CHECK(world.driver().to_device(World::pages(1, 1), false, SimDriver::Holes::kLeave) == 1);
       CHECK(world.memory().dontneed(World::pages(2, 1)).has_value());
       world.read(1, World::word(2));
     }},
};

// ---- what the engine does ---------------------------------------------------------------------------------------

void evict(World& world, Place place, bool compound) {
  (void)world.driver().to_device(place.all(), compound, SimDriver::Holes::kLeave);
}

const Named kEngines[] = {
    {"evict",
     [](World& world, Place place) { world.engine("evict", [&world, place] { evict(world, place, place.huge); }); }},
    {"populate",
     [](World& world, Place place) {
       world.engine("populate", [&world, place] {
         (void)world.driver().to_device(place.all(), place.huge, SimDriver::Holes::kPopulate);
       });
     }},
    {"fetch",
     [](World& world, Place place) {
       world.engine("fetch", [&world, place] { (void)world.driver().to_ram(place.all(), place.huge); });
     }},
    {"evict+fetch",
     [](World& world, Place place) {
       world.engine("evict", [&world, place] { evict(world, place, place.huge); });
       world.engine("fetch", [&world, place] { (void)world.driver().to_ram(place.part(), false); });
     }},
    {"evict+evict",
     [](World& world, Place place) {
       world.engine("evict", [&world, place] { evict(world, place, place.huge); });
       world.engine("evict part",
                    [&world, place] { (void)world.driver().to_device(place.part(), false, SimDriver::Holes::kLeave); });
     }},
    {"by-frame",
     [](World& world, Place place) {
       world.engine("evict", [&world, place] { evict(world, place, place.huge); });
       world.engine("frames home", [&world] { (void)world.driver().evict_frames(); });
     }},
};

// ---- what the program does --------------------------------------------------------------------------------------

void read_all(World& world, std::uint32_t thread) {
  for (std::uint64_t i = 0; i < 4; ++i) world.read(thread, World::word(i));
}

const Named kPrograms[] = {
    {"touch",
     [](World& world, Place) {
       world.program([&world](std::uint32_t self) {
         world.read(self, World::word(0));
         world.write(self, World::word(1));
         world.write(self, World::word(3));
         world.read(self, World::word(1));
       });
     }},
    {"touch+touch",
     [](World& world, Place) {
       for (int i = 0; i < 2; ++i) {
         world.program([&world](std::uint32_t self) {
           world.write(self, World::word(1, 8 * (self % 2)));
           world.read(self, World::word(1, 8));
         });
       }
     }},
    {"signals",
     [](World& world, Place) {
       world.program([&world](std::uint32_t self) {
         world.read(self, World::word(1));
         world.write(self, World::word(2));
       });
       world.program([&world](std::uint32_t) {
         for (int i = 0; i < 3; ++i) {
           Scheduler::current()->point();
           world.mmu().userfault().interrupt_waiter(0);
         }
       });
     }},
    {"munmap-part",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t) { world.memory().munmap(place.part()); });
       world.program([&world](std::uint32_t self) { world.read(self, World::word(0)); });
     }},
    {"munmap+reuse",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t) { world.memory().munmap(place.all()); });
       world.program([&world, place](std::uint32_t self) {
         // Another thread gets the same addresses, perhaps before anybody was told.
         if (!world.mmu().space().is_free(place.all())) return;
         world.memory().mmap(place.all());
         world.write(self, World::word(1));
         world.read(self, World::word(1));
         world.read(self, World::word(2));
       });
     }},
    {"replace",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         world.memory().mmap(place.part());
         world.write(self, World::word(1));
         read_all(world, self);
       });
     }},
    {"discard",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().dontneed(place.part());
         world.read(self, World::word(1));
         world.write(self, World::word(2));
         world.read(self, World::word(2));
       });
     }},
    {"discard+touch",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().dontneed(place.all());
         world.read(self, World::word(1));
       });
       world.program([&world](std::uint32_t self) {
         world.write(self, World::word(1));
         world.read(self, World::word(2));
       });
     }},
    {"free",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().free_lazily(place.part());
         world.read(self, World::word(1));
         world.mmu().reclaim({PageIndex(0), PageCount(std::uint64_t{1} << 36)});
         world.write(self, World::word(2, 128));
         read_all(world, self);
       });
     }},
    {"mremap",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().mremap(place.all(), place.elsewhere());
         world.write(self, moved(World::word(1)));
         world.read(self, moved(World::word(2)));
       });
       world.program([&world](std::uint32_t self) { world.read(self, World::word(2)); });
     }},
    {"mremap-part",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().mremap(place.part(), place.elsewhere() + PageCount(1));
         world.read(self, moved(World::word(1)));
         world.read(self, World::word(0));
       });
     }},
    {"mremap-back",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().mremap(place.all(), place.elsewhere());
         (void)world.memory().mremap({place.elsewhere(), place.all().count}, World::kHome);
         read_all(world, self);
       });
     }},
    {"dontunmap",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().mremap(place.all(), place.elsewhere(), true);
         world.write(self, World::word(1));
         world.read(self, moved(World::word(1)));
         world.read(self, World::word(1));
       });
     }},
    {"protect",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().mprotect(place.part(), Mapping::kReadable);
         world.read(self, World::word(1));
         (void)world.memory().mprotect(place.part(), 0);
         (void)world.memory().mprotect(place.part(), kReadWrite);
         world.write(self, World::word(1));
         world.read(self, World::word(2));
       });
     }},
    {"protect-stays",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().mprotect(place.part(), Mapping::kReadable);
         world.read(self, World::word(1));
         world.write(self, World::word(0));
       });
     }},
    {"lock",
     [](World& world, Place place) {
       world.program([&world, place](std::uint32_t self) {
         (void)world.memory().mlock(self, place.part());
         world.write(self, World::word(1));
         (void)world.memory().munlock(place.part());
         world.read(self, World::word(2));
       });
     }},
    {"fork",
     [](World& world, Place) {
       world.program([&world](std::uint32_t self) {
         Scheduler::current()->point();
         const auto child = world.mmu().fork();
         world.write(self, World::word(1));
         world.read(self, World::word(2));
         Scheduler::current()->point();
       });
     }},
    {"pin",
     [](World& world, Place) {
       world.program([&world](std::uint32_t self) {
         world.read(self, World::word(1));
         if (!world.mmu().pin(World::kHome + PageCount(1))) return;
         for (int i = 0; i < 3; ++i) Scheduler::current()->point();
         world.mmu().unpin(World::kHome + PageCount(1));
         world.write(self, World::word(2));
       });
     }},
    {"swap",
     [](World& world, Place) {
       world.program([&world](std::uint32_t self) {
         Scheduler::current()->point();
         (void)world.mmu().space().swap_out(World::kHome + PageCount(1));
         Scheduler::current()->point();
         (void)world.mmu().space().swap_out(World::kHome + PageCount(2));
         read_all(world, self);
       });
     }},
};

}  // namespace

std::vector<Scenario> all_scenarios() {
  std::vector<Scenario> scenarios;
  for (const bool huge : {false, true}) {
    for (const Named& start : kStarts) {
      for (const Named& engine : kEngines) {
        for (const Named& program : kPrograms) {
          const std::string name =
              std::string(engine.name) + "/" + program.name + "/" + start.name + (huge ? "/huge" : "/small");
          scenarios.push_back({name, [&start, &engine, &program, huge](World& world) {
                                 const Place place{huge};
                                 world.setup([&world, &start, place] { start.run(world, place); });
                                 engine.run(world, place);
                                 program.run(world, place);
                               }});
        }
      }
    }
  }
  return scenarios;
}

}  // namespace whimbrel::sim
