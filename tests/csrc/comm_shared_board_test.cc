// Boards: steps that nobody passes alone, and how waiting ends when others die, leave or are interrupted.
#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "comm_shared_parts.h"

namespace elastates {
namespace {

using namespace testing;

constexpr uint64_t kGroup = 77;

std::unique_ptr<Board> BoundBoard(Player& player, uint32_t epoch = 1, std::vector<int> ranks = {}) {
  auto board = player.OpenBoard(kGroup, epoch, std::move(ranks));
  CHECK_OK(board->Bind(Soon()));
  return board;
}

uint64_t ShownBy(const Board& board, int rank) {
  uint64_t value;
  std::memcpy(&value, board.window_of(rank), sizeof(value));
  return value;
}

// Shows a number and returns the sum of all.
uint64_t SumOf(Board& board, uint64_t value) {
  std::memcpy(board.window(), &value, sizeof(value));
  CHECK_OK(board.Meet(Soon()));
  uint64_t sum = 0;
  for (int rank = 0; rank < board.size(); ++rank) {
    sum += ShownBy(board, rank);
    CHECK_OK(board.Confirm(rank));
  }
  return sum;
}

void SumManyTimes(Player& player) {
  auto board = BoundBoard(player);
  const uint64_t size = static_cast<uint64_t>(player.size()), rank = static_cast<uint64_t>(player.rank());
  for (uint64_t i = 0; i < 300; ++i) {
    CHECK_EQ(SumOf(*board, 1000 * i + rank), 1000 * i * size + size * (size - 1) / 2);
  }
}

TEST(many_steps_of_more_processes_than_cores) {
  for (int size : {1, 2, 3, 8}) Players(size, SumManyTimes).WaitForAll();
}

TEST(kernels_that_wait_for_one_word_only_work_too) {
  Players players(3, [](Player& player) {
    ForceSingleFutexForTesting(true);
    SumManyTimes(player);
  });
  players.WaitForAll();
}

TEST(groups_of_one_process_do_not_meet_each_other) {
  Players players(3, [](Player& player) {
    auto all = BoundBoard(player);
    auto pair = player.rank() < 2 ? player.OpenBoard(kGroup + 1, 1, {1, 0}) : nullptr;
    if (pair) CHECK_OK(pair->Bind(Soon()));
    for (uint64_t i = 0; i < 50; ++i) {
      CHECK_EQ(SumOf(*all, i), 3 * i);
      if (pair) CHECK_EQ(SumOf(*pair, 7), uint64_t{14});
    }
  });
  players.WaitForAll();
}

// A group of the same name and epoch made anew must not take up the slot that a slower peer has yet to close.
TEST(a_group_made_again_meets_its_own_kind) {
  Players players(3, [](Player& player) {
    for (uint64_t round = 0; round < 100; ++round) {
      auto board = BoundBoard(player);
      CHECK_EQ(SumOf(*board, round), 3 * round);
    }
  });
  players.WaitForAll();
}

TEST(an_interrupted_sleeper_returns_the_reason) {
  Players players(2, [](Player& player) {
    for (bool single : {false, true}) {
      ForceSingleFutexForTesting(single);
      auto board = BoundBoard(player, single ? 2 : 1);
      if (player.rank() == 1) {
        CHECK(Until([&] { return player.mark(single).load() != 0; }));
        continue;
      }
      std::thread interrupter([&] {
        const auto& word = player.segment().control().slots[0].progress;
        CHECK(Until([&] { return single || Progress::Of(word.load()).count == 1; }));
        board->Interrupt(Status(StatusCode::kRevoked, "rank 1 is dead"));
        board->Interrupt(Status(StatusCode::kRevoked, "comes too late"));
      });
      const Status met = board->Meet(Soon());
      interrupter.join();
      CHECK(met.code() == StatusCode::kRevoked);
      CHECK_EQ(met.message(), "rank 1 is dead");
      CHECK_EQ(board->Meet(Soon()).message(), "rank 1 is dead");
      player.mark(single).store(1);
    }
  });
  players.WaitForAll();
}

TEST(an_interrupt_ends_binding_too) {
  Players players(2, [](Player& player) {
    if (player.rank() == 0) {
      auto board = player.OpenBoard(kGroup, 1);
      std::thread interrupter([&] { board->Interrupt(Status(StatusCode::kRevoked, "enough")); });
      CHECK_EQ(board->Bind(Soon()).message(), "enough");
      interrupter.join();
      player.mark(0).store(1);
    }
    CHECK(Until([&] { return player.mark(0).load() != 0; }));
  });
  players.WaitForAll();
}

TEST(who_leaves_ends_the_waiting_of_the_others) {
  Players players(3, [](Player& player) {
    auto board = BoundBoard(player);
    CHECK_EQ(SumOf(*board, 1), uint64_t{3});
    if (player.rank() == 1) return;  // closes its slot
    const Status met = board->Meet(Soon());
    CHECK(met.code() == StatusCode::kRevoked);
    CHECK(met.message().find("rank 1") != std::string::npos);
    player.mark(player.rank()).store(1);  // or the other one could find us gone first
    CHECK(Until([&] { return player.mark(0).load() + player.mark(2).load() == 2; }));
  });
  players.WaitForAll();
}

// What was shown in the last step counts although its owner has closed its board by now.
TEST(the_last_step_holds_when_peers_leave_at_once) {
  Players players(4, [](Player& player) {
    for (uint32_t epoch = 1; epoch <= 100; ++epoch)
      CHECK_EQ(SumOf(*BoundBoard(player, epoch), 5), uint64_t{20});
  });
  players.WaitForAll();
}

TEST(a_deadline_names_who_is_missing) {
  Players players(2, [](Player& player) {
    auto board = BoundBoard(player);
    if (player.rank() == 0) {
      const Status met = board->Meet(For(0.05));
      CHECK(met.code() == StatusCode::kDeadlineExceeded);
      CHECK(met.message().find("rank 1") != std::string::npos);
      player.mark(0).store(1);
    }
    CHECK(Until([&] { return player.mark(0).load() != 0; }));
  });
  players.WaitForAll();
}

// The one that was stopped goes on in its old epoch when it wakes up: nobody reads that any more.
TEST(a_sleeper_that_wakes_up_disturbs_nobody) {
  Players players(3, [](Player& player) {
    auto board = BoundBoard(player);
    CHECK_EQ(SumOf(*board, 1), uint64_t{3});
    if (player.rank() == 2) {
      raise(SIGSTOP);
      for (int i = 0; i < 100; ++i) {
        std::memset(board->window(), 0xff, 64);
        board->Arrive();
        player.mark(3).store(1);
      }
      CHECK(board->Meet(Soon()).code() == StatusCode::kRevoked);
      return;
    }
    board.reset();
    auto next = BoundBoard(player, 2, {0, 1});
    for (uint64_t i = 0; true; ++i) {
      CHECK_EQ(SumOf(*next, i), 2 * i);
      if (i == 100) player.mark(player.rank()).store(1);
      const bool more = i < 200 || player.mark(3).load() == 0;
      if (SumOf(*next, player.rank() == 0 && more) == 0) break;  // rank 0 says when both end
    }
  });
  CHECK(Until([&] { return players.mark(0).load() + players.mark(1).load() == 2; }));
  players.Signal(2, SIGCONT);
  players.WaitForAll();
}

TEST(nobody_waits_for_a_killed_one_once_it_is_known) {
  Players players(4, [](Player& player) {
    auto board = BoundBoard(player);
    std::thread watcher([&] {
      CHECK(Until([&] { return player.mark(0).load() != 0; }));
      board->Interrupt(Status(StatusCode::kRevoked, "rank 3 was killed"));
    });
    Status met;
    for (uint64_t i = 0; met.ok(); ++i) {
      met = board->Meet(Soon());
      player.mark(8 + player.rank()).store(i);
    }
    CHECK_EQ(met.message(), "rank 3 was killed");
    watcher.join();
  });
  CHECK(Until([&] { return players.mark(8).load() > 1000; }));
  players.Signal(3, SIGKILL);
  CHECK_EQ(players.Wait(3), -SIGKILL);
  players.mark(0).store(1);
  players.WaitForAll();
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
