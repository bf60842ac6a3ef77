// Event sequences: the engine in a simulated world, where the input says what the program, the engine's user and the
// rest of the machine do, and in which order their threads run. Every read is checked against a model of bytes, and in
// the end everything must be home with nothing left over.
//
//   byte 0      bit 0: the schedule is in the input, otherwise it follows from bytes 1 and 2
//   bytes 1, 2  the seed of schedule and world
//   byte 3      how many of the following bytes are the schedule (with bit 0), times 4
//   the rest    operations
#include <vector>

#include "fuzz/fuzz.h"
#include "sim/worlds/random_world.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace whimbrel;
  fuzz::Decisions in({data, size});
  const bool scheduled = in.byte() % 2 != 0;
  const std::uint64_t seed = in.number(2);
  const auto order = in.bytes(4 * std::size_t{in.byte()});
  sim::Choices choices = scheduled ? sim::Choices::replay({order.begin(), order.end()}) : sim::Choices::random(seed);
  (void)choices.next();
  const std::vector<sim::Operation> operations = sim::operations_from(in.rest());
  sim::World world(choices, sim::random_options(seed, scheduled ? 0 : 20, false));
  sim::start_random_world(world, seed, operations, nullptr);
  world.run();
  if (!world.verdict().empty()) {
    for (const sim::Operation& operation : operations) std::fprintf(stderr, "  %s\n", sim::describe(operation).c_str());
    std::fprintf(stderr, "%s\n", world.verdict().c_str());
    PROPERTY(false, "a world in which nothing is lost");
  }
  return 0;
}
