// Collectives through shared memory between real processes: sums, deaths in the middle, sleepers, peers that
// do something else or write nonsense. What each operation does is tested in comm_collectives_test.cc.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "comm/shared/local_collectives.h"
#include "comm_shared_parts.h"

namespace elastates {
namespace {

using namespace testing;

constexpr uint64_t kGroup = 4711;

View ViewOf(uint32_t epoch, const std::vector<int>& ranks) {
  View view;
  view.epoch = epoch;
  for (int rank : ranks) {
    Member member;
    member.id = Player::IdOf(rank);
    member.host = "here";
    view.members.push_back(member);
  }
  return view;
}

// An operation of a group without messages: it ends after a minute, or when it is stopped.
class LocalOperation : public Operation {
 public:
  LocalOperation(View view, MemberId self, uint64_t sequence) : view_(std::move(view)), sequence_(sequence) {
    while (view_.members[rank_].id != self) ++rank_;
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(view_.members.size()); }
  const View& view() const override { return view_; }
  uint64_t sequence() const override { return sequence_; }
  void Send(int, uint32_t, const void*, size_t) override { CHECK(!"sends nothing"); }
  void Receive(int, uint32_t, void*, size_t) override { CHECK(!"receives nothing"); }
  Status Wait() override { return Check(); }
  Status WaitFirst(size_t) override { return Check(); }
  char* Scratch(size_t size_bytes) override {  // asked for right before another's memory is read
    if (before_reading) before_reading();
    scratch_.resize(size_bytes);
    return scratch_.data();
  }
  Status Check() override {
    std::lock_guard<std::mutex> lock(mutex_);
    return why_.ok() ? patience(0) : why_;
  }
  void WakeOnStop(std::function<void()> wake) override {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_ = std::move(wake);
    if (!why_.ok()) wake_();
  }

  std::function<void()> before_reading;
  KeepWaiting patience = Soon();

  void Stop(const std::string& why) {
    std::lock_guard<std::mutex> lock(mutex_);
    why_ = Status(StatusCode::kRevoked, why);
    if (wake_) wake_();
  }

 private:
  const View view_;
  const uint64_t sequence_;
  std::vector<char> scratch_;
  int rank_ = 0;
  std::mutex mutex_;
  Status why_;
  std::function<void()> wake_;
};

// One member of the group, with what an operation of it needs.
class LocalMember {
 public:
  explicit LocalMember(Player& player) : player_(player), local_(&player.neighbours(), kGroup) {}

  void Install(uint32_t epoch, std::vector<int> ranks) {
    view_ = ViewOf(epoch, ranks);
    sequence_ = 0;
  }
  // Stopped as soon as `mark` is set.
  Status Run(const Collective& collective, std::atomic<uint64_t>* mark = nullptr) {
    LocalOperation op(view_, Player::IdOf(player_.rank()), sequence_++);
    std::atomic<bool> over{false};
    std::thread watcher([&] {
      if (mark == nullptr) return;
      CHECK(Until([&] { return over.load() || mark->load() != 0; }));
      if (!over.load()) op.Stop("a member is dead");
    });
    const Status status = local_.Run(op, collective);
    over.store(true);
    watcher.join();
    return status;
  }

 private:
  Player& player_;
  LocalCollectives local_;
  View view_;
  uint64_t sequence_ = 0;
};

Collective AllReduceOf(std::vector<float>* values) {
  Collective collective;
  collective.kind = CollectiveKind::kAllReduce;
  collective.type = DataType::kFloat32;
  collective.in = collective.out = {{reinterpret_cast<char*>(values->data()), values->size()}};
  return collective;
}

float ValueOf(int rank, size_t i) { return 0.1f * static_cast<float>((i * 31 + rank * 17) % 1009); }

std::vector<float> Input(int rank, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = ValueOf(rank, i);
  return values;
}

// Rounded after each summand, in the order of ranks: what every member must have, to the last bit.
bool IsSumOf(const std::vector<float>& values, const std::vector<int>& ranks) {
  for (size_t i = 0; i < values.size(); ++i) {
    float sum = ValueOf(ranks[0], i);
    for (size_t k = 1; k < ranks.size(); ++k) sum += ValueOf(ranks[k], i);
    if (sum != values[i]) return false;
  }
  return true;
}

std::vector<int> Ranks(int size) {
  std::vector<int> ranks(size);
  for (int rank = 0; rank < size; ++rank) ranks[rank] = rank;
  return ranks;
}

void ReduceManySizes(Player& player) {
  LocalMember member(player);
  member.Install(1, Ranks(player.size()));
  for (size_t count : {1, 17, 16384, 16385, 300001, 1500000}) {
    std::vector<float> values = Input(player.rank(), count);
    CHECK_OK(member.Run(AllReduceOf(&values)));
    CHECK(IsSumOf(values, Ranks(player.size())));
  }
}

TEST(sums_have_the_same_bits_whatever_their_size) {
  for (int size : {2, 3, 8}) Players(size, ReduceManySizes).WaitForAll();
}

TEST(large_results_are_streamed_past_the_caches) {
  Players players(2, [](Player& player) {
    LocalMember member(player);
    member.Install(1, {0, 1});
    std::vector<float> values = Input(player.rank(), 9 << 20);
    CHECK_OK(member.Run(AllReduceOf(&values)));
    CHECK(IsSumOf(values, {0, 1}));
  });
  players.WaitForAll();
}

// Reduces until it is stopped; then goes on with the survivors.
void OutliveRankTwo(Player& player) {
  LocalMember member(player);
  member.Install(1, {0, 1, 2});
  Status status;
  for (uint64_t i = 1; status.ok(); ++i) {
    std::vector<float> values = Input(player.rank(), 400000);
    status = member.Run(AllReduceOf(&values), &player.mark(8));
    if (status.ok()) CHECK(IsSumOf(values, {0, 1, 2}));
    player.mark(player.rank()).store(i);
  }
  CHECK_EQ(status.code(), StatusCode::kRevoked);
  member.Install(2, {0, 1});
  std::vector<float> values = Input(player.rank(), 400000);
  CHECK_OK(member.Run(AllReduceOf(&values)));
  CHECK(IsSumOf(values, {0, 1}));
}

TEST(survivors_of_a_kill_within_an_operation_go_on) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 6; ++trial) {
    Players players(3, OutliveRankTwo);
    CHECK(Until([&] { return players.mark(2).load() >= 2; }));
    const auto begin = WaitClock::now();  // anywhere within the next few operations
    while (WaitClock::now() - begin < std::chrono::microseconds(random() % 4000)) continue;
    players.Signal(2, SIGKILL);
    CHECK_EQ(players.Wait(2), -SIGKILL);
    players.mark(8).store(1);
    players.WaitForAll();
  }
}

// It goes on with its operation when it wakes up, finds nobody, and has changed nothing.
// As above with memory that is read directly: it may be gone at any moment.
void OutliveRankTwoReading(Player& player) {
  LocalMember member(player);
  member.Install(1, {0, 1, 2});
  Status status;
  for (uint64_t i = 1; status.ok(); ++i) {
    const size_t count = 500000;
    std::vector<float> in = Input(player.rank(), 3 * count), out(count);
    Collective collective;
    collective.kind = CollectiveKind::kReduceScatter;
    collective.type = DataType::kFloat32;
    for (size_t part = 0; part < 3; ++part) {
      collective.in.push_back({reinterpret_cast<char*>(in.data() + part * count), count});
    }
    collective.out = {{reinterpret_cast<char*>(out.data()), count}};
    status = member.Run(collective, &player.mark(8));
    player.mark(player.rank()).store(i);
  }
  CHECK_EQ(status.message(), "a member is dead");  // as the links say it, whoever saw it first
}

TEST(a_kill_while_memory_is_read_is_an_error) {
  for (int trial = 0; trial < 6; ++trial) {
    Players players(3, OutliveRankTwoReading);
    CHECK(Until([&] { return players.mark(2).load() >= 2 + static_cast<uint64_t>(trial); }));
    players.Signal(2, SIGKILL);
    CHECK_EQ(players.Wait(2), -SIGKILL);
    players.mark(8).store(1);
    players.WaitForAll();
  }
}

Collective HalvesOf(std::vector<float>& in, std::vector<float>& out) {
  Collective collective;
  collective.kind = CollectiveKind::kReduceScatter;
  collective.type = DataType::kFloat32;
  for (size_t part = 0; part < 2; ++part) {
    collective.in.push_back({reinterpret_cast<char*>(in.data() + part * out.size()), out.size()});
  }
  collective.out = {{reinterpret_cast<char*>(out.data()), out.size()}};
  return collective;
}

// Rank 0 has read what it wants and waits for rank 1, is stopped, and uses its memory for something else,
// which rank 1 then reads.
TEST(memory_of_a_member_that_has_failed_is_not_believed) {
  Players players(2, [](Player& player) {
    std::vector<float> in = Input(player.rank(), 200000), out(100000);
    LocalCollectives local(&player.neighbours(), kGroup);
    LocalOperation op(ViewOf(1, {0, 1}), Player::IdOf(player.rank()), 0);
    if (player.rank() == 1) {
      op.before_reading = [&] { CHECK(Until([&] { return player.mark(0).load() != 0; })); };
      const auto patience = std::make_shared<KeepWaiting>(For(60));
      op.patience = [&, patience](int) { return player.mark(0).load() != 0 ? For(0)(0) : (*patience)(0); };
      CHECK_EQ(local.Run(op, HalvesOf(in, out)).code(), StatusCode::kDeadlineExceeded);
      player.mark(1).store(1);
      return;
    }
    std::thread stopper([&] {
      const std::atomic<uint64_t>& progress = player.segment().control().slots[0].progress;
      CHECK(Until([&] { return Progress::Of(progress.load()).count == 2; }));
      op.Stop("tired");
    });
    CHECK_EQ(local.Run(op, HalvesOf(in, out)).code(), StatusCode::kRevoked);
    stopper.join();
    std::fill(in.begin(), in.end(), 1e6f);
    player.mark(0).store(1);
    CHECK(Until([&] { return player.mark(1).load() != 0; }));
  });
  players.WaitForAll();
}

TEST(members_that_may_not_be_read_use_windows) {
  Players players(2, [](Player& player) {
    if (player.rank() == 1) setenv("ELASWAVE_NO_REMOTE_READS", "1", 1);
    ReduceManySizes(player);
  });
  players.WaitForAll();
}

TEST(a_sleeper_finds_that_the_others_have_left) {
  Players players(3, [](Player& player) {
    if (player.rank() < 2) return OutliveRankTwo(player);
    LocalMember member(player);
    member.Install(1, {0, 1, 2});
    Status status;
    for (uint64_t i = 1; status.ok(); ++i) {
      std::vector<float> values = Input(player.rank(), 400000);
      status = member.Run(AllReduceOf(&values));
      player.mark(2).store(i);
    }
    CHECK_EQ(status.code(), StatusCode::kRevoked);
    CHECK(status.message().find("has left epoch 1") != std::string::npos);
  });
  CHECK(Until([&] { return players.mark(2).load() >= 2; }));
  players.Signal(2, SIGSTOP);
  players.mark(8).store(1);
  CHECK_EQ(players.Wait(0), 0);
  CHECK_EQ(players.Wait(1), 0);
  players.Signal(2, SIGCONT);
  players.WaitForAll();
}

TEST(members_that_do_different_things_are_told) {
  Players players(3, [](Player& player) {
    LocalMember member(player);
    member.Install(1, {0, 1, 2});
    std::vector<float> values = Input(player.rank(), 1000);
    Collective collective = AllReduceOf(&values);
    if (player.rank() == 1) {
      collective.kind = CollectiveKind::kBroadcast;
      collective.in.clear();
    }
    const Status status = member.Run(collective);
    CHECK_EQ(status.code(), StatusCode::kInvalidArgument);
    CHECK(status.message().find("broadcast of float32") != std::string::npos);
    CHECK(status.message().find("all-reduce of float32") != std::string::npos);
    player.mark(player.rank()).store(1);  // or the others could find it gone first
    for (int rank : {0, 1, 2}) CHECK(Until([&] { return player.mark(rank).load() != 0; }));
  });
  players.WaitForAll();
}

TEST(lengths_that_differ_are_told) {
  Players players(2, [](Player& player) {
    LocalMember member(player);
    member.Install(1, {0, 1});
    std::vector<float> values = Input(player.rank(), 1000 + player.rank());
    const Status status = member.Run(AllReduceOf(&values));
    CHECK_EQ(status.code(), StatusCode::kInvalidArgument);
    CHECK(status.message().find("lengths differ") != std::string::npos);
    player.mark(player.rank()).store(1);
    CHECK(Until([&] { return player.mark(1 - player.rank()).load() != 0; }));
  });
  players.WaitForAll();
}

TEST(parts_that_only_a_pair_knows_and_see_differently_are_told) {
  Players players(3, [](Player& player) {
    LocalMember member(player);
    member.Install(1, {0, 1, 2});
    std::vector<float> in = Input(player.rank(), 300), out(300);
    Collective collective;
    collective.kind = CollectiveKind::kAllToAll;
    collective.type = DataType::kFloat32;
    for (size_t part = 0; part < 3; ++part) {
      const size_t count = player.rank() == 0 && part == 1 ? 99 : 100;  // rank 1 expects 100
      collective.in.push_back({reinterpret_cast<char*>(in.data() + part * 100), count});
      collective.out.push_back({reinterpret_cast<char*>(out.data() + part * 100), 100});
    }
    const Status status = member.Run(collective);
    CHECK_EQ(status.ok(), player.rank() != 1);
    if (player.rank() == 1) {
      CHECK_EQ(status.code(), StatusCode::kInvalidArgument);
      CHECK_EQ(status.message(), "rank 0 has 99 elements for rank 1, which expects 100");
    }
  });
  players.WaitForAll();
}

// A peer whose memory is full of random numbers costs an error, or wrong bytes, and nothing else.
TEST(nonsense_in_a_peers_window_does_no_harm) {
  Players players(2, [](Player& player) {
    std::mt19937 random(3);
    for (uint32_t epoch = 1; epoch <= 60; ++epoch) {
      if (player.rank() == 0) {
        auto board = player.OpenBoard(kGroup, epoch);
        CHECK_OK(board->Bind(Soon()));
        for (size_t i = 0; i < 1024; i += 4) {
          const uint32_t number = static_cast<uint32_t>(random());
          std::memcpy(board->window() + i, &number, sizeof(number));
        }
        board->Arrive();
        CHECK(Until([&] { return player.mark(1).load() == epoch; }));
      } else {
        LocalMember member(player);
        member.Install(epoch, {0, 1});
        std::vector<float> values = Input(1, 500);
        CHECK_EQ(member.Run(AllReduceOf(&values)).code(), StatusCode::kInvalidArgument);
        player.mark(1).store(epoch);
      }
    }
  });
  players.WaitForAll();
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
