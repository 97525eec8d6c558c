// Agreement and Membership in a simulated world: what must happen in fair weather, and what must never happen
// in any.
#include "check.h"
#include "view_world.h"

using elastates::View;
using elastates::World;
using elastates::WorldOptions;

namespace {

WorldOptions Fair(uint64_t seed, int num_members) {
  WorldOptions options;
  options.seed = seed;
  options.num_members = num_members;
  return options;
}

// As a page of shared memory: of no more than so many bytes.
struct SmallVoteStore : elastates::VoteStore {
  static constexpr size_t kMostBytes = 8192;
  elastates::Status Write(const std::string& bytes) override {
    if (bytes.size() <= kMostBytes) return elastates::Status::Ok();
    return elastates::Status(elastates::StatusCode::kInvalidArgument, "too long");
  }
};

}  // namespace

TEST(newcomers_for_whom_a_vote_has_no_room_wait_for_the_next_epoch) {
  SmallVoteStore votes;
  elastates::AgreementOptions options;
  options.most_decision_bytes = SmallVoteStore::kMostBytes / 2 - 64;
  elastates::Membership membership(1, options, votes);
  elastates::Member self;
  self.id = 1;
  CHECK_OK(membership.Open({1, {self}}));
  for (uint64_t id = 2; id < 102; ++id) {
    elastates::Member joiner;
    joiner.id = id;
    joiner.host = std::string(200, 'h');
    membership.AddCandidate({joiner, ""});
  }
  size_t num_waiting = 100;
  for (uint32_t epoch = 2; epoch < 4; ++epoch) {
    membership.Begin("");
    CHECK(!membership.is_over());
    CHECK_EQ(membership.view().epoch, epoch);
    const size_t num_members = membership.view().members.size();
    CHECK(num_members > 5);
    num_waiting -= num_members - 1;
    CHECK_EQ(membership.num_candidates(), num_waiting);
    for (size_t rank = 1; rank < num_members; ++rank)  // or they would have to agree too
      membership.OnLoss(membership.view().members[rank].id, elastates::Loss::kDead, "");
  }
}

TEST(survivors_of_one_death_go_on) {
  for (int victim = 0; victim < 4; ++victim) {
    World world(Fair(victim, 4));
    world.At(0.5, [&] { world.Kill(victim); });
    CHECK_EQ(world.Run(), "");
    CHECK_EQ(world.num_running(), 3);
  }
}

TEST(one_of_two_and_two_of_four_go_on_after_proven_deaths) {
  World two(Fair(1, 2));
  two.At(0.5, [&] { two.Kill(0); });
  CHECK_EQ(two.Run(), "");
  CHECK_EQ(two.num_running(), 1);
  World four(Fair(2, 4));
  four.At(0.5, [&] { four.Kill(0), four.Kill(2); });
  CHECK_EQ(four.Run(), "");
  CHECK_EQ(four.num_running(), 2);
}

TEST(members_die_one_after_another_down_to_one) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    World world(Fair(seed, 6));
    for (int victim = 0; victim < 5; ++victim)
      world.At(world.Random(40), [&world, victim] { world.Kill(victim); });
    CHECK_EQ(world.Run(), "");
    CHECK_EQ(world.num_running(), 1);
  }
}

// The first leader dies at its every step, and in turn the next one at its every step.
TEST(leaders_may_die_at_every_step) {
  for (int num_members = 3; num_members <= 5; ++num_members) {
    for (int sends = 0; sends < 24; ++sends) {
      for (int next_sends = 0; next_sends < 30; next_sends += 2) {
        World world(Fair(100 * sends + next_sends, num_members));
        world.KillAfterSends(0, sends);
        world.KillAfterSends(1, next_sends);
        world.At(0.5, [&] { world.Kill(num_members - 1); });
        CHECK_EQ(world.Run(), "");
        CHECK_LE(num_members - 3, world.num_running());
      }
    }
  }
}

TEST(a_silent_member_is_killed_and_the_others_go_on) {
  for (int silent = 0; silent < 4; ++silent) {
    for (const bool is_asleep : {false, true}) {
      World world(Fair(silent, 4));
      world.At(0.4, [&] { is_asleep ? world.Sleep(silent) : world.Hang(silent); });
      world.At(0.5, [&] { world.Kill((silent + 1) % 4); });
      world.At(100, [&] { world.Wake(silent); });
      CHECK_EQ(world.Run(200), "");
      CHECK_EQ(world.num_running(), 2);
      CHECK(!world.IsRunning(silent));
    }
  }
}

TEST(one_of_two_goes_on_when_the_other_sleeps) {
  for (int sleeper = 0; sleeper < 2; ++sleeper) {
    World world(Fair(sleeper, 3));
    world.At(0.4, [&] { world.Sleep(sleeper); });
    world.At(0.5, [&] { world.Kill(2); });
    CHECK_EQ(world.Run(), "");
    CHECK(world.IsRunning(1 - sleeper) && !world.IsRunning(sleeper));
  }
}

TEST(the_majority_goes_on_and_the_minority_stops_when_a_cable_is_cut) {
  for (uint32_t sides = 1; sides < 31; ++sides) {
    World world(Fair(sides, 5));
    world.At(0.5, [&] { world.Cut(sides); });
    CHECK_EQ(world.Run(), "");
    CHECK(world.num_running() >= 3);
    for (int index = 0; index < 5; ++index) CHECK(world.IsRunning(index) || !world.IsFenced(index));
  }
}

// 2 ticks to give up all who might lead, 2 to miss them, 2 for their fence, and the messages between.
TEST(the_members_of_a_host_that_is_cut_off_are_given_up_together) {
  World world(Fair(1, 17));
  world.At(0.5, [&] { world.Cut(0x00ff); });
  world.At(10, [&] {
    for (int index = 8; index < 17; ++index) CHECK_EQ(world.view(index).epoch, 2u);
  });
  CHECK_EQ(world.Run(), "");
  CHECK_EQ(world.num_running(), 9);
}

TEST(without_a_witness_both_halves_stop) {
  World world(Fair(3, 4));
  world.At(0.5, [&] { world.Cut(0b0101); });
  CHECK_EQ(world.Run(), "");
  CHECK_EQ(world.num_running(), 0);
}

TEST(a_witness_lets_exactly_one_half_go_on) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    WorldOptions options = Fair(seed, 4);
    options.has_witness = true;
    World world(options);
    world.At(0.5, [&] { world.Cut(seed % 2 ? 0b0011 : 0b1010); });
    if (seed % 4 == 3) world.PutWitness(1);
    CHECK_EQ(world.Run(), "");
    CHECK_EQ(world.num_running(), 2);
  }
}

TEST(nobody_goes_on_when_neither_half_reaches_the_witness) {
  WorldOptions options = Fair(5, 2);
  options.has_witness = true;
  World world(options);
  world.PutWitness(2);
  world.At(0.5, [&] { world.Cut(0b01); });
  CHECK_EQ(world.Run(), "");
  CHECK_EQ(world.num_running(), 0);
}

TEST(a_death_whose_vote_is_lost_needs_all_the_others) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    WorldOptions options = Fair(seed, 2 + static_cast<int>(seed % 4));
    options.num_hosts = options.num_members;
    options.deaths_elsewhere = WorldOptions::Remote::kWithoutVote;
    World world(options);
    for (int victim = 1; victim < options.num_members; ++victim)
      world.At(0.5 + world.Random(2), [&world, victim] { world.Kill(victim); });
    CHECK_EQ(world.Run(), "");
    CHECK_EQ(world.num_running(), 1);
  }
}

TEST(members_join_while_others_die) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    WorldOptions options = Fair(seed, 3);
    options.num_joiners = 2;
    World world(options);
    world.At(0.5, [&] { world.Grow(); });
    if (seed > 0) world.At(0.5 + world.Random(0.2), [&] { world.Kill(world.RandomInt(5)); });
    CHECK_EQ(world.Run(), "");
    CHECK(world.num_running() >= (seed > 0 ? 2 : 5));
  }
}

int main() { return RUN_ALL_TESTS(); }
