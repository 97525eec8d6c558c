// Every collective against sums made by hand: group sizes, lengths on both sides of each algorithm's limits,
// pieces of unequal length, members on several hosts.
#include <cmath>
#include <cstring>
#include <functional>
#include <set>

#include "comm/collectives/collectives.h"
#include "comm/collectives/messages.h"
#include "comm/collectives/two_levels.h"
#include "comm_parts.h"

namespace elastates {
namespace {

using Values = std::vector<int64_t>;
using Lists = std::vector<Values>;  // one per piece

constexpr size_t kLengths[] = {0, 1, 3, 1000, 40003, 300001};  // the last ones: rings, several blocks

int64_t Value(int rank, int piece, size_t i) { return 1000000 * rank + 1000 * piece + int64_t(i % 997) + 1; }

Values Fill(int rank, int piece, size_t count) {
  Values values(count);
  for (size_t i = 0; i < count; ++i) values[i] = Value(rank, piece, i);
  return values;
}

std::vector<ElementSpan> PiecesOf(Lists& lists) {
  std::vector<ElementSpan> pieces;
  for (Values& values : lists) pieces.push_back({reinterpret_cast<char*>(values.data()), values.size()});
  return pieces;
}

// What each member brings, and what it has afterwards.
struct Trial {
  Collective collective;
  std::vector<Lists> in, out;

  Trial(CollectiveKind kind, int size) : in(size), out(size) {
    collective.kind = kind;
    collective.type = DataType::kInt64;
  }
  void Run(Team& team) {
    std::vector<std::future<Status>> outcomes;
    for (int rank = 0; rank < team.size(); ++rank) {
      Collective mine = collective;
      mine.in = PiecesOf(in[rank]);
      mine.out = PiecesOf(out[rank]);
      outcomes.push_back(team.Run(rank, [mine](Operation& op) { return RunCollective(op, mine); }));
    }
    for (auto& outcome : outcomes) CHECK_OK(Outcome(outcome));
  }
};

constexpr Way kWays[] = {Way::kMessages, Way::kSharedMemory, Way::kWindows, Way::kTwoHosts};

void ForAll(const std::function<void(Team&, int size, size_t length)>& check) {
  for (Way way : kWays) {
    for (int size = 1; size <= 5; ++size) {
      Team team(size, {7, 0.0002}, way);
      for (size_t length : kLengths) check(team, size, length);
    }
  }
}

Values SumOver(int size, int piece, size_t count) {
  Values sum(count);
  for (int rank = 0; rank < size; ++rank) {
    for (size_t i = 0; i < count; ++i) sum[i] += Value(rank, piece, i);
  }
  return sum;
}

TEST(broadcast) {
  ForAll([](Team& team, int size, size_t length) {
    for (int root : {0, size - 1}) {
      Trial trial(CollectiveKind::kBroadcast, size);
      trial.collective.root = root;
      for (int rank = 0; rank < size; ++rank) trial.out[rank] = {Fill(rank, 0, length)};
      trial.Run(team);
      for (int rank = 0; rank < size; ++rank) CHECK(trial.out[rank][0] == Fill(root, 0, length));
    }
  });
}

TEST(all_reduce_leaves_its_input) {
  ForAll([](Team& team, int size, size_t length) {
    Trial trial(CollectiveKind::kAllReduce, size);
    for (int rank = 0; rank < size; ++rank) {
      trial.in[rank] = {Fill(rank, 0, length)};
      trial.out[rank] = {Values(length)};
    }
    trial.Run(team);
    for (int rank = 0; rank < size; ++rank) {
      CHECK(trial.out[rank][0] == SumOver(size, 0, length));
      CHECK(trial.in[rank][0] == Fill(rank, 0, length));
    }
  });
}

void AverageInPlace(Team& team) {
  for (size_t length : kLengths) {
    Lists values;
    for (int rank = 0; rank < 4; ++rank) values.push_back(Fill(rank, 0, length));
    const std::vector<ElementSpan> pieces = PiecesOf(values);
    std::vector<std::future<Status>> outcomes;
    for (int rank = 0; rank < 4; ++rank) {
      Collective mine;
      mine.kind = CollectiveKind::kAllReduce;
      mine.type = DataType::kInt64;
      mine.reduction.kind = ReduceKind::kAvg;
      mine.in = mine.out = {pieces[rank]};
      outcomes.push_back(team.Run(rank, [mine](Operation& op) { return RunCollective(op, mine); }));
    }
    for (auto& outcome : outcomes) CHECK_OK(Outcome(outcome));
    Values average = SumOver(4, 0, length);
    for (int64_t& value : average) value /= 4;
    for (int rank = 0; rank < 4; ++rank) CHECK(values[rank] == average);
  }
}

TEST(all_reduce_in_place) {
  for (Way way : kWays) {
    Team team(4, {}, way);
    AverageInPlace(team);
  }
}

void SumWithFactors(Team& team) {
  for (size_t length : {size_t{5}, size_t{200000}}) {
    std::vector<std::vector<double>> values(3, std::vector<double>(length, 1.0));
    std::vector<std::future<Status>> outcomes;
    for (int rank = 0; rank < 3; ++rank) {
      Collective mine;
      mine.kind = CollectiveKind::kAllReduce;
      mine.type = DataType::kFloat64;
      mine.reduction = {ReduceKind::kPremulSum, rank + 0.5};
      mine.in = mine.out = {{reinterpret_cast<char*>(values[rank].data()), length}};
      outcomes.push_back(team.Run(rank, [mine](Operation& op) { return RunCollective(op, mine); }));
    }
    for (auto& outcome : outcomes) CHECK_OK(Outcome(outcome));
    for (int rank = 0; rank < 3; ++rank) CHECK(values[rank] == std::vector<double>(length, 4.5));
  }
}

TEST(premultiplied_sums_use_each_members_own_factor) {
  for (Way way : kWays) {
    Team team(3, {}, way);
    SumWithFactors(team);
  }
}

TEST(reduce_writes_only_on_the_root) {
  ForAll([](Team& team, int size, size_t length) {
    Trial trial(CollectiveKind::kReduce, size);
    const int root = size / 2;
    trial.collective.root = root;
    for (int rank = 0; rank < size; ++rank) trial.in[rank] = {Fill(rank, 0, length)};
    trial.out[root] = {Values(length)};
    trial.Run(team);
    CHECK(trial.out[root][0] == SumOver(size, 0, length));
    for (int rank = 0; rank < size; ++rank) CHECK(trial.in[rank][0] == Fill(rank, 0, length));
  });
}

TEST(all_gather_of_unequal_pieces) {
  ForAll([](Team& team, int size, size_t length) {
    Trial trial(CollectiveKind::kAllGather, size);
    for (int rank = 0; rank < size; ++rank) {
      trial.in[rank] = {Fill(rank, 0, length + rank)};
      for (int from = 0; from < size; ++from) trial.out[rank].push_back(Values(length + from));
    }
    trial.Run(team);
    for (int rank = 0; rank < size; ++rank) {
      for (int from = 0; from < size; ++from) CHECK(trial.out[rank][from] == Fill(from, 0, length + from));
    }
  });
}

TEST(gather_and_scatter) {
  ForAll([](Team& team, int size, size_t length) {
    const int root = size - 1;
    Trial gather(CollectiveKind::kGather, size), scatter(CollectiveKind::kScatter, size);
    gather.collective.root = scatter.collective.root = root;
    for (int rank = 0; rank < size; ++rank) {
      gather.in[rank] = {Fill(rank, 0, length + rank)};
      gather.out[root].push_back(Values(length + rank));
      scatter.in[root].push_back(Fill(root, rank, length + rank));
      scatter.out[rank] = {Values(length + rank)};
    }
    gather.Run(team);
    scatter.Run(team);
    for (int rank = 0; rank < size; ++rank) {
      CHECK(gather.out[root][rank] == Fill(rank, 0, length + rank));
      CHECK(scatter.out[rank][0] == Fill(root, rank, length + rank));
    }
  });
}

TEST(reduce_scatter_of_unequal_pieces) {
  ForAll([](Team& team, int size, size_t length) {
    Trial trial(CollectiveKind::kReduceScatter, size);
    for (int rank = 0; rank < size; ++rank) {
      for (int to = 0; to < size; ++to) trial.in[rank].push_back(Fill(rank, to, length + to));
      trial.out[rank] = {Values(length + rank)};
    }
    trial.Run(team);
    for (int rank = 0; rank < size; ++rank) {
      CHECK(trial.out[rank][0] == SumOver(size, rank, length + rank));
      for (int to = 0; to < size; ++to) CHECK(trial.in[rank][to] == Fill(rank, to, length + to));
    }
  });
}

TEST(all_to_all_of_unequal_pieces) {
  ForAll([](Team& team, int size, size_t length) {
    Trial trial(CollectiveKind::kAllToAll, size);
    const auto length_of = [&](int from, int to) { return length + static_cast<size_t>(2 * from + to); };
    for (int rank = 0; rank < size; ++rank) {
      for (int peer = 0; peer < size; ++peer) {
        trial.in[rank].push_back(Fill(rank, peer, length_of(rank, peer)));
        trial.out[rank].push_back(Values(length_of(peer, rank)));
      }
    }
    trial.Run(team);
    for (int rank = 0; rank < size; ++rank) {
      for (int from = 0; from < size; ++from) {
        CHECK(trial.out[rank][from] == Fill(from, rank, length_of(from, rank)));
      }
    }
  });
}

void EnterBarrier(Team& team) {
  std::atomic<int> num_entered{0};
  std::vector<std::future<Status>> outcomes;
  for (int rank = 0; rank < 5; ++rank) {
    outcomes.push_back(team.Run(rank, [&](Operation& op) {
      num_entered.fetch_add(1);
      const Status status = RunCollective(op, Collective());
      CHECK_EQ(num_entered.load(), 5);
      return status;
    }));
  }
  for (auto& outcome : outcomes) CHECK_OK(Outcome(outcome));
}

TEST(nobody_leaves_a_barrier_before_all_have_come) {
  for (Way way : kWays) {
    Team team(5, {9, 0.001}, way);
    EnterBarrier(team);
  }
}

// Zeros of both signs are equal, and so are numbers that are none: which of them it is must not depend on
// the member.
TEST(all_members_have_the_same_bits) {
  for (Way way : kWays) {
    Team team(4, {}, way);
    std::vector<std::vector<float>> values;
    for (int rank = 0; rank < 4; ++rank) {
      values.push_back({rank % 2 == 0 ? 0.0f : -0.0f, rank == 1 ? std::nanf("1") : 1.0f, 2.0f + rank});
    }
    std::vector<std::future<Status>> outcomes;
    for (int rank = 0; rank < 4; ++rank) {
      Collective mine;
      mine.kind = CollectiveKind::kAllReduce;
      mine.type = DataType::kFloat32;
      mine.reduction.kind = ReduceKind::kMax;
      mine.in = mine.out = {{reinterpret_cast<char*>(values[rank].data()), 3}};
      outcomes.push_back(team.Run(rank, [mine](Operation& op) { return RunCollective(op, mine); }));
    }
    for (auto& outcome : outcomes) CHECK_OK(Outcome(outcome));
    for (const std::vector<float>& of_rank : values) {
      CHECK(std::isnan(of_rank[1]) && of_rank[2] == 5.0f);
      CHECK_EQ(std::memcmp(of_rank.data(), values[0].data(), 3 * sizeof(float)), 0);
    }
  }
}

// Touches no memory and remembers what was posted.
class PretendedOperation : public Operation {
 public:
  explicit PretendedOperation(View view) : view_(std::move(view)) {}
  int rank() const override { return 0; }
  int size() const override { return static_cast<int>(view_.members.size()); }
  const View& view() const override { return view_; }
  uint64_t sequence() const override { return 0; }
  void Send(int, uint32_t, const void*, size_t) override {}
  void Receive(int, uint32_t tag, void*, size_t size_bytes) override {
    CHECK(tags_.insert(tag).second);
    received_bytes += size_bytes;
  }
  Status Wait() override { return Status::Ok(); }
  Status WaitFirst(size_t) override { return Status::Ok(); }
  Status Check() override { return Status::Ok(); }
  void WakeOnStop(std::function<void()>) override {}
  char* Scratch(size_t) override { return nullptr; }

  size_t received_bytes = 0;

 private:
  const View view_;
  std::set<uint32_t> tags_;
};

TEST(pieces_of_many_gigabytes_have_a_tag_for_every_block) {
  constexpr size_t kPieceBytes = size_t{20} << 30;
  Collective collective;
  collective.kind = CollectiveKind::kAllGather;
  for (size_t rank = 0; rank < 3; ++rank) {
    collective.out.push_back({reinterpret_cast<char*>(rank * kPieceBytes), kPieceBytes});
  }
  collective.in = {collective.out[0]};
  PretendedOperation op({1, std::vector<Member>(3)});
  CHECK_OK(RingAllGather(op, collective));
  CHECK_EQ(op.received_bytes, 2 * kPieceBytes);
}

TEST(rings_pass_through_each_host_once) {
  View view;
  for (const char* host : {"a", "b", "a", "c", "b", "a"}) {
    Member member;
    member.host = host;
    view.members.push_back(member);
  }
  CHECK(RingOrder(view) == (std::vector<int>{0, 2, 5, 1, 4, 3}));
}

TEST(two_levels_need_equally_many_members_on_every_host) {
  View view;
  for (const char* host : {"a", "b", "b", "a"}) {
    Member member;
    member.host = host;
    view.members.push_back(member);
  }
  CHECK(PlanTwoLevels(view, 0)->here == (std::vector<int>{0, 3}));
  CHECK(PlanTwoLevels(view, 0)->across == (std::vector<int>{0, 1}));
  CHECK(PlanTwoLevels(view, 2)->here == (std::vector<int>{1, 2}));
  CHECK(PlanTwoLevels(view, 2)->across == (std::vector<int>{3, 2}));
  view.members[2].host = "a";
  for (int rank = 0; rank < 4; ++rank) CHECK(!PlanTwoLevels(view, rank));
  view.members[1].host = "a";
  CHECK(!PlanTwoLevels(view, 0));
}

TEST(what_does_not_fit_is_refused_on_the_spot) {
  Team team(2);
  const auto refused = [&](Collective collective) {
    Team pair(2);
    std::future<Status> outcome =
        pair.Run(0, [collective](Operation& op) { return RunCollective(op, collective); });
    const Status status = Outcome(outcome);
    CHECK_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  float value = 0;
  const ElementSpan piece{reinterpret_cast<char*>(&value), 1};
  Collective collective;
  collective.kind = CollectiveKind::kAllReduce;
  collective.type = DataType::kFloat32;
  CHECK_EQ(refused(collective), "all-reduce in a group of 2 needs 1 inputs and 1 outputs, not 0 and 0");
  collective.in = collective.out = {piece};
  collective.reduction.kind = ReduceKind::kBxor;
  CHECK_EQ(refused(collective), "there is no reduction bxor of float32");
  collective.reduction.kind = ReduceKind::kSum;
  collective.out[0].count = 2;
  CHECK_EQ(refused(collective), "all-reduce from 1 elements to 2");
  collective.root = 2;
  CHECK_EQ(refused(collective), "root 2 of a group of 2");
}

void MissTheThird(CollectiveKind kind, Way way) {
  Team team(3, {4, 0.001}, way);
  std::vector<Lists> values(3, Lists{Values(300000, 1)});
  std::vector<std::future<Status>> outcomes;
  for (int rank = 0; rank < 2; ++rank) {  // the third never comes
    Collective mine;
    mine.kind = kind;
    mine.type = DataType::kInt64;
    if (kind == CollectiveKind::kAllReduce) mine.in = mine.out = PiecesOf(values[rank]);
    outcomes.push_back(team.Run(rank, [mine](Operation& op) { return RunCollective(op, mine); }));
  }
  team.net().Kill(2);
  for (auto& outcome : outcomes) {
    CHECK(Outcome(outcome).message().find("[elastic epoch 1, lost ranks 2]") != std::string::npos);
  }
}

TEST(a_death_within_any_collective_ends_it_everywhere) {
  for (Way way : kWays) {
    for (CollectiveKind kind : {CollectiveKind::kAllReduce, CollectiveKind::kBarrier})
      MissTheThird(kind, way);
  }
}

// All collectives of a team that shares memory go through it; they meet again after an edit.
TEST(survivors_share_memory_in_the_next_epoch) {
  Team team(3, {}, Way::kSharedMemory);
  const auto all_reduce = [&](int size) {
    Trial trial(CollectiveKind::kAllReduce, 3);
    std::vector<std::future<Status>> outcomes;
    for (int rank = 0; rank < size; ++rank) {
      trial.in[rank] = trial.out[rank] = {Fill(rank, 0, 40003)};
      Collective mine = trial.collective;
      mine.in = mine.out = PiecesOf(trial.out[rank]);
      outcomes.push_back(team.Run(rank, [mine](Operation& op) {
        CHECK(op.local() != nullptr);
        return RunCollective(op, mine);
      }));
    }
    for (auto& outcome : outcomes) CHECK_OK(Outcome(outcome));
    for (int rank = 0; rank < size; ++rank) CHECK(trial.out[rank][0] == SumOver(size, 0, 40003));
  };
  all_reduce(3);
  View next = *team.at(0).view();
  next.epoch = 2;
  next.members.pop_back();
  team.at(0).Revoke("edited");
  for (int rank = 0; rank < 2; ++rank) CHECK_OK(team.hub(rank).Install(team.at(rank), next));
  all_reduce(2);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
