// Groups: order, failures, revocation, newer views, messages between two members; over the loopback net.
#include <array>
#include <atomic>

#include "comm/collectives/collectives.h"
#include "comm_parts.h"

namespace elastates {
namespace {

// Adds up one number per rank by sending to all.
Group::Body SumBody(int64_t mine, int64_t* sum) {
  return [mine, sum](Operation& op) {
    std::vector<int64_t> got(op.size(), mine);
    for (int peer = 0; peer < op.size(); ++peer) {
      if (peer == op.rank()) continue;
      op.Receive(peer, 0, &got[peer], sizeof(int64_t));
      op.Send(peer, 0, &mine, sizeof(int64_t));
    }
    const Status status = op.Wait();
    *sum = 0;
    for (int64_t value : got) *sum += value;
    return status;
  };
}

// Waits for a message from a rank that never sends it.
Group::Body WaitForBody(int from) {
  return [from](Operation& op) {
    char byte = 0;
    if (op.rank() != from) op.Receive(from, 9, &byte, 1);
    return op.Wait();
  };
}

View Without(const View& view, int rank) {
  View edited = view;
  edited.epoch += 1;
  edited.members.erase(edited.members.begin() + rank);
  return edited;
}

void CheckSums(Team& team, const std::vector<int>& ranks) {
  std::vector<int64_t> sums(team.size());
  std::vector<std::future<Status>> outcomes;
  int64_t expected = 0;
  for (int rank : ranks) {
    outcomes.push_back(team.Run(rank, SumBody(rank + 1, &sums[rank])));
    expected += rank + 1;
  }
  for (auto& outcome : outcomes) CHECK_OK(Outcome(outcome));
  for (int rank : ranks) CHECK_EQ(sums[rank], expected);
}

TEST(operations_run_in_order_on_all_members) {
  Team team(4, {11, 0.0005});
  constexpr int kNumRounds = 50;
  std::vector<std::array<int64_t, kNumRounds>> sums(4);
  std::vector<std::future<Status>> outcomes;
  for (int round = 0; round < kNumRounds; ++round) {
    for (int rank = 0; rank < 4; ++rank) {
      outcomes.push_back(team.Run(rank, SumBody(100 * round + rank, &sums[rank][round])));
    }
  }
  for (auto& outcome : outcomes) CHECK_OK(Outcome(outcome));
  for (int rank = 0; rank < 4; ++rank) {
    for (int round = 0; round < kNumRounds; ++round) CHECK_EQ(sums[rank][round], 400 * round + 6);
  }
  CHECK_EQ(team.at(0).sequence(), uint64_t{kNumRounds});
}

TEST(a_death_fails_running_queued_and_new_operations_everywhere_and_is_named) {
  Team team(4, {5, 0.001});
  std::vector<std::future<Status>> outcomes;
  for (int rank = 0; rank < 3; ++rank) {
    outcomes.push_back(team.Run(rank, WaitForBody(3)));
    outcomes.push_back(team.Run(rank, WaitForBody(3)));
  }
  team.net().Kill(3);
  for (auto& outcome : outcomes) {
    const Status status = Outcome(outcome);
    CHECK(!status.ok());
    CHECK(status.message().find("lost rank 3 (pid 4 on loopback)") != std::string::npos);
    CHECK(status.message().find("[elastic epoch 1, lost ranks 3]") != std::string::npos);
  }
  std::future<Status> late = team.Run(0, WaitForBody(3));
  CHECK_EQ(Outcome(late).code(), StatusCode::kRevoked);
}

TEST(a_revocation_reaches_members_that_see_nothing_themselves) {
  Team team(3, {5, 0.001});
  std::future<Status> waiting = team.Run(2, WaitForBody(0));
  team.at(1).Revoke("tired");
  const Status status = Outcome(waiting);
  CHECK_EQ(status.code(), StatusCode::kRevoked);
  CHECK_EQ(status.message(), "tired");
}

TEST(survivors_go_on_in_a_newer_view) {
  Team team(4, {5, 0.001});
  CheckSums(team, {0, 1, 2, 3});
  team.net().Kill(1);
  for (int rank : {0, 2, 3}) {
    team.at(rank).Revoke("killed");
    CHECK_OK(team.hub(rank).Install(team.at(rank), Without(*team.at(rank).view(), 1)));
  }
  CHECK_EQ(team.at(0).rank(), 0);
  CHECK_EQ(team.at(3).rank(), 2);
  CheckSums(team, {0, 2, 3});
}

TEST(a_view_with_a_lost_member_is_revoked_as_it_is_installed) {
  Team team(3);
  team.net().Kill(2);
  team.at(0).Revoke("killed");
  while (team.hub(0).losses().empty()) std::this_thread::yield();
  View same = *team.at(0).view();
  same.epoch += 1;
  CHECK_OK(team.hub(0).Install(team.at(0), same));
  std::future<Status> outcome = team.Run(0, WaitForBody(2));
  CHECK(Outcome(outcome).message().find("[elastic epoch 2, lost ranks 2]") != std::string::npos);
}

TEST(a_revocation_of_the_next_epoch_is_not_forgotten) {
  Team team(2);
  View next = *team.at(0).view();
  next.epoch = 2;
  team.at(0).RevokeEpochSoon(2, "already");
  CHECK_EQ(team.at(0).why_revoked(), "");
  CHECK_OK(team.hub(0).Install(team.at(0), next));
  CHECK_EQ(team.at(0).why_revoked(), "already");
}

TEST(a_revocation_of_a_later_epoch_ends_the_earlier_one_too) {
  Team team(2);
  View next = *team.at(0).view();
  for (uint32_t epoch : {2, 3}) team.at(0).RevokeEpochSoon(epoch, "in epoch " + std::to_string(epoch));
  next.epoch = 2;
  CHECK_OK(team.hub(0).Install(team.at(0), next));
  CHECK_EQ(team.at(0).why_revoked(), "in epoch 3");
}

// Two members of which one has not made the group yet when the other has begun to use it.
class LateTeam {
 public:
  LateTeam() {
    for (int rank = 0; rank < 2; ++rank) {
      view_.members.push_back(net_.member(rank));
      hubs_.push_back(std::make_unique<Hub>(net_.at(rank)));
    }
  }
  ~LateTeam() {
    for (const auto& hub : hubs_) hub->CloseAll();
  }

  std::shared_ptr<QueuedGroup> Make(int rank) {
    Result<std::shared_ptr<QueuedGroup>> group = hubs_[rank]->MakeGroup("late", view_);
    CHECK_OK(group.status());
    return group.value();
  }
  // Until rank 1 has heard all that rank 0 has said so far.
  void Settle() {
    std::promise<void> heard;
    hubs_[1]->HandleControl("settled", [&](MemberId, const std::string&) { heard.set_value(); });
    hubs_[0]->SendControl(net_.member(1).id, "settled", "");
    heard.get_future().wait();
  }

 private:
  View view_{1, {}};
  std::vector<std::unique_ptr<Hub>> hubs_;
  LoopbackNet net_{2};  // goes first: its threads call the hubs
};

TEST(a_revocation_waits_for_who_has_not_made_the_group_yet) {
  LateTeam team;
  team.Make(0)->Revoke("at once");
  team.Settle();
  CHECK_EQ(team.Make(1)->why_revoked(), "at once");
}

TEST(a_receive_from_anybody_is_served_by_who_makes_the_group_later) {
  LateTeam team;
  const std::shared_ptr<QueuedGroup> early = team.Make(0);
  int got = 0;
  const int sent = 7;
  std::promise<Status> received;
  early->ReceiveAny(0, &got, sizeof(got), [&](Status status, int) { received.set_value(std::move(status)); });
  team.Settle();
  team.Make(1)->Send(0, 0, &sent, sizeof(sent), [](const Status& status) { CHECK_OK(status); });
  std::future<Status> outcome = received.get_future();
  CHECK_OK(Outcome(outcome));
  CHECK_EQ(got, 7);
}

TEST(views_that_are_old_or_without_this_member_are_refused) {
  Team team(2);
  View view = *team.at(0).view();
  CHECK_EQ(team.at(0).Install(view).code(), StatusCode::kInvalidArgument);
  CHECK_EQ(team.at(0).Install(Without(view, 0)).code(), StatusCode::kInvalidArgument);
  CheckSums(team, {0, 1});
}

TEST(an_operation_that_takes_too_long_names_whom_it_waits_for) {
  Team team(3);
  std::future<Status> outcome = team.Run(0, WaitForBody(2), 0.01);
  const Status status = Outcome(outcome);
  CHECK_EQ(status.code(), StatusCode::kDeadlineExceeded);
  CHECK_EQ(status.message(), "rank 0 waited longer than 0.01 s for ranks 2");
  while (team.at(1).why_revoked().empty()) std::this_thread::yield();
  CHECK_EQ(team.at(1).why_revoked(), status.message());
}

TEST(pairs_meet_by_tag_and_count) {
  Team team(2, {3, 0.001});
  int got[4] = {};
  const int sent[4] = {10, 11, 12, 13};
  std::atomic<int> num_left{8};
  const auto done = [&](const Status& status) {
    CHECK_OK(status);
    num_left.fetch_sub(1);
  };
  for (int i = 3; i >= 2; --i) team.at(1).Receive(0, 5, &got[i == 3 ? 2 : 3], sizeof(int), done);
  for (int i = 0; i < 4; ++i) team.at(0).Send(1, i < 2 ? 4 : 5, &sent[i], sizeof(int), done);
  for (int i = 0; i < 2; ++i) team.at(1).Receive(0, 4, &got[i], sizeof(int), done);
  while (num_left.load() > 0) std::this_thread::yield();
  for (int i = 0; i < 4; ++i) CHECK_EQ(got[i], sent[i]);
}

TEST(a_receive_from_anybody_takes_what_was_sent_before_or_comes_later) {
  Team team(3, {3, 0.001});
  const int sent[3] = {0, 11, 22};
  int got[2] = {};
  std::promise<int> sources[2];
  const auto sent_well = [](const Status& status) { CHECK_OK(status); };
  const auto receive = [&](int i) {
    team.at(0).ReceiveAny(4, &got[i], sizeof(int), [&sources, i](const Status& status, int from) {
      CHECK_OK(status);
      sources[i].set_value(from);
    });
  };
  team.at(1).Send(0, 4, &sent[1], sizeof(int), sent_well);
  receive(0);
  CHECK_EQ(sources[0].get_future().get(), 1);
  receive(1);
  team.at(2).Send(0, 4, &sent[2], sizeof(int), sent_well);
  CHECK_EQ(sources[1].get_future().get(), 2);
  CHECK_EQ(got[0], 11);
  CHECK_EQ(got[1], 22);
}

TEST(a_receive_from_anybody_fails_with_the_group) {
  Team team(2);
  int got = 0;
  std::promise<Status> failed;
  team.at(0).ReceiveAny(0, &got, sizeof(got), [&](Status status, int from) {
    CHECK_EQ(from, -1);
    failed.set_value(std::move(status));
  });
  team.at(0).Revoke("enough");
  std::future<Status> outcome = failed.get_future();
  CHECK_EQ(Outcome(outcome).code(), StatusCode::kRevoked);
}

TEST(pairs_fail_with_the_group) {
  Team team(2);
  int got = 0;
  std::promise<Status> failed;
  team.at(0).Receive(1, 0, &got, sizeof(got), [&](Status status) { failed.set_value(std::move(status)); });
  team.at(0).Revoke("enough");
  std::future<Status> outcome = failed.get_future();
  CHECK_EQ(Outcome(outcome).code(), StatusCode::kRevoked);
}

TEST(a_body_can_wait_for_what_is_no_message) {
  Team team(2);
  std::promise<void> woken;
  std::promise<void> began;
  std::future<Status> outcome = team.Run(0, [&](Operation& op) {
    op.WakeOnStop([&] { woken.set_value(); });
    CHECK_OK(op.Check());
    began.set_value();
    woken.get_future().wait();
    return op.Check();
  });
  began.get_future().wait();
  team.at(1).RevokeSoon("stop");
  CHECK_EQ(Outcome(outcome).message(), "stop");
}

TEST(who_has_said_farewell_is_missed_only_when_needed) {
  Team team(3);
  team.hub(2).Leave();
  std::promise<void> heard;
  team.hub(0).HandleControl("after", [&](MemberId, const std::string&) { heard.set_value(); });
  team.hub(2).SendControl(team.net().member(0).id, "after", "");
  heard.get_future().wait();
  team.net().Kill(2);
  while (team.hub(0).losses().empty()) std::this_thread::yield();
  CHECK_EQ(team.at(0).why_revoked(), "");
  std::future<Status> outcome = team.Run(0, WaitForBody(2));
  CHECK(Outcome(outcome).message().find("lost ranks 2]") != std::string::npos);
}

// Memory tells nothing of it: that member never comes, and nobody revokes.
TEST(who_has_said_farewell_is_missed_in_shared_memory_too) {
  for (bool has_met : {false, true}) {
    Team team(2, {}, Way::kSharedMemory);
    const Group::Body barrier = [](Operation& op) { return RunCollective(op, Collective{}); };
    if (has_met) {
      std::future<Status> met[] = {team.Run(0, barrier), team.Run(1, barrier)};
      for (auto& outcome : met) CHECK_OK(Outcome(outcome));
    }
    std::future<Status> outcome = team.Run(0, barrier);
    team.hub(1).Leave();
    team.net().Tell(0, 1, Loss::kDead, "killed", "");
    CHECK(Outcome(outcome).message().find("lost ranks 1]") != std::string::npos);
  }
}

TEST(closing_fails_what_is_queued) {
  Team team(2);
  std::future<Status> outcome = team.Run(0, WaitForBody(1));
  team.at(0).Close();
  CHECK_EQ(Outcome(outcome).code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
