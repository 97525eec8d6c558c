// Thousands of random schedules by seed: deaths, sleepers, hung threads, cut cables, joiners, in fair and in
// foul weather (delays of many ticks, so that the healthy are taken for dead). And the proof that the
// watching is worth something: with a rule of the protocol broken, some schedule is found that goes wrong.
// Rules that chance hardly ever needs have their schedules in comm_view_rules_test.cc.
#include <cstdio>

#include "check.h"
#include "view_world.h"

using elastates::AgreementRules;
using elastates::World;
using elastates::WorldOptions;

namespace {

constexpr uint64_t kNumSchedules = 6000;
constexpr uint64_t kNumBrokenSchedules = 60000;  // at most, until one goes wrong

WorldOptions Drawn(uint64_t seed) {
  std::mt19937_64 random(seed * 7919 + 1);
  WorldOptions options;
  options.seed = seed;
  options.num_members = 2 + static_cast<int>(random() % 5);
  options.num_joiners = random() % 4 == 0 ? 1 : 0;
  options.num_hosts = random() % 3 == 0 ? 2 : 1;
  options.deaths_elsewhere = static_cast<WorldOptions::Remote>(random() % 3);
  options.has_witness = random() % 3 == 0;
  const double delays[] = {0.05, 0.05, 1, 5, 20};
  options.max_delay = delays[random() % 5];
  return options;
}

void AddFaults(World& world, const WorldOptions& options) {
  const double span = 3 + 30 * options.max_delay;
  const int num_members = options.num_members;
  for (int left = 1 + world.RandomInt(num_members); left > 0; --left) {
    const int victim = world.RandomInt(num_members);
    const double when = 0.5 + world.Random(span);
    if (world.RandomInt(3) == 0) {
      world.KillAfterSends(victim, world.RandomInt(40));
    } else {
      world.At(when, [&world, victim] { world.Kill(victim); });
    }
  }
  if (world.RandomInt(4) == 0) {
    const int sleeper = world.RandomInt(num_members);
    const double when = world.Random(span);
    world.At(when, [&world, sleeper] { world.Sleep(sleeper); });
    world.At(when + world.Random(60), [&world, sleeper] { world.Wake(sleeper); });
  }
  if (world.RandomInt(8) == 0) world.Hang(world.RandomInt(num_members));
  if (world.RandomInt(4) == 0) {
    const uint32_t sides = static_cast<uint32_t>(world.RandomInt(1 << num_members));
    world.At(world.Random(span), [&world, sides] { world.Cut(sides); });
  }
  if (options.num_joiners > 0) world.At(world.Random(2), [&world] { world.Grow(); });
}

std::string RunStorm(WorldOptions options) {
  World world(options);
  AddFaults(world, options);
  return world.Run();
}

// The first schedule that goes wrong, or nothing.
std::string Search(const std::function<void(WorldOptions&)>& change) {
  for (uint64_t seed = 0; seed < kNumBrokenSchedules; ++seed) {
    WorldOptions options = Drawn(seed);
    change(options);
    const std::string failure = RunStorm(options);
    if (!failure.empty()) return failure;
  }
  return "";
}

void ExpectFound(const char* rule, const std::function<void(WorldOptions&)>& change) {
  const std::string failure = Search(change);
  std::printf("without \"%s\": %s\n", rule, failure.c_str());
  CHECK_NE(failure, "");
}

}  // namespace

TEST(nothing_goes_wrong_in_any_weather) {
  for (uint64_t seed = 0; seed < kNumSchedules; ++seed) CHECK_EQ(RunStorm(Drawn(seed)), "");
}

TEST(a_majority_must_decide) {
  ExpectFound("majority", [](WorldOptions& options) { options.rules.majority_decides = false; });
}

TEST(the_highest_ballot_must_bind_later_leaders) {
  ExpectFound("highest ballot", [](WorldOptions& options) { options.rules.highest_ballot_binds = false; });
}

TEST(fences_must_come_before_edits) {
  ExpectFound("fence first", [](WorldOptions& options) { options.rules.fence_comes_first = false; });
}

TEST(epochs_must_be_kept_apart) {
  ExpectFound("epochs apart", [](WorldOptions& options) { options.rules.epochs_are_kept_apart = false; });
}

int main() { return RUN_ALL_TESTS(); }
