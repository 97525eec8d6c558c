// ViewKeeper over real links: several endpoints in this process, which agree, are reported dead, join.
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "comm/view/view_keeper.h"

using elastates::AgreedView;
using elastates::Endpoint;
using elastates::LinkPoolOptions;
using elastates::Member;
using elastates::Result;
using elastates::StatusCode;
using elastates::View;
using elastates::ViewKeeper;
using elastates::ViewKeeperOptions;
using elastates::ViewRequest;

namespace {

constexpr double kPatienceS = 60;

struct Node {
  std::shared_ptr<Endpoint> endpoint;
  std::unique_ptr<ViewKeeper> keeper;
};

// `host`: empty for this one; a fence among processes of one host would kill this test.
Node Start(double failure_timeout_s, const std::string& host = "") {
  LinkPoolOptions links;
  links.host = host;
  links.job = "views";
  links.secret = "sixteen bytes or more";
  Result<std::shared_ptr<Endpoint>> endpoint = Endpoint::Start(links);
  CHECK_OK(endpoint.status());
  ViewKeeperOptions options;
  options.group = "all";
  options.failure_timeout_s = failure_timeout_s;
  options.exits_when_out = false;
  return {endpoint.value(), std::make_unique<ViewKeeper>(endpoint.value(), options)};
}

std::vector<Node> StartGroup(int num_members, double failure_timeout_s = kPatienceS) {
  std::vector<Node> nodes;
  View view{1, {}};
  for (int rank = 0; rank < num_members; ++rank) {
    const bool may_fence = failure_timeout_s < kPatienceS;
    nodes.push_back(Start(failure_timeout_s, may_fence ? "host-" + std::to_string(rank) : ""));
    view.members.push_back(nodes.back().endpoint->self());
  }
  std::vector<std::future<void>> making;
  for (Node& node : nodes) {
    making.push_back(std::async(std::launch::async, [&node, &view] {
      CHECK_OK(node.endpoint->MakeGroup("all", view, kPatienceS).status());
      CHECK_OK(node.keeper->Open(view));
    }));
  }
  for (auto& made : making) made.get();
  return nodes;
}

std::vector<AgreedView> AgreeAll(std::vector<Node>& nodes) {
  std::vector<std::future<Result<AgreedView>>> agreeing;
  for (size_t i = 0; i < nodes.size(); ++i) {
    agreeing.push_back(std::async(std::launch::async, [&nodes, i] {
      return nodes[i].keeper->Agree("from " + std::to_string(i), kPatienceS);
    }));
  }
  std::vector<AgreedView> agreed;
  for (auto& future : agreeing) {
    Result<AgreedView> view = future.get();
    CHECK_OK(view.status());
    agreed.push_back(view.value());
  }
  return agreed;
}

// Polls: the links' thread does it.
bool Comes(const std::function<bool()>& holds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!holds() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  return holds();
}

void Close(Node& node) {
  node.keeper->Close();
  node.endpoint->Close();
}

void Close(std::vector<Node>& nodes) {
  for (Node& node : nodes) Close(node);
}

}  // namespace

TEST(survivors_agree_on_a_view_with_their_payloads) {
  std::vector<Node> nodes = StartGroup(4);
  const Member dead = nodes[1].endpoint->self();
  Close(nodes[1]);
  nodes.erase(nodes.begin() + 1);
  for (Node& node : nodes) node.endpoint->links().ReportDead(dead.id, "for the test", "");
  for (const AgreedView& agreed : AgreeAll(nodes)) {
    CHECK_EQ(agreed.view.epoch, 2u);
    CHECK_EQ(agreed.view.members.size(), 3u);
    CHECK_EQ(agreed.decision.seats[1].old_rank, 2);
    CHECK_EQ(agreed.decision.seats[1].payload, "from 1");
  }
  Close(nodes);
}

TEST(views_follow_one_another_down_to_one_member) {
  std::vector<Node> nodes = StartGroup(4);
  while (nodes.size() > 1) {
    const Member dead = nodes[0].endpoint->self();
    Close(nodes[0]);
    nodes.erase(nodes.begin());
    for (Node& node : nodes) node.endpoint->links().ReportDead(dead.id, "for the test", "");
    for (const AgreedView& agreed : AgreeAll(nodes)) CHECK_EQ(agreed.view.members.size(), nodes.size());
    CHECK(
        Comes([&] { return nodes[0].endpoint->links().PeerSegmentFd(dead.id) < 0; }));  // costs nothing more
  }
  Close(nodes);
}

// A process has one page for its votes; the keepers of a group that it has left are still there.
TEST(votes_about_another_group_are_not_taken_for_ours) {
  std::vector<Node> nodes = StartGroup(3);
  std::vector<Node> others;
  View view{1, {}};
  for (const Node& node : nodes) view.members.push_back(node.endpoint->self());
  for (const Node& node : nodes) {
    ViewKeeperOptions options;
    options.group = "others";
    options.exits_when_out = false;
    others.push_back({node.endpoint, std::make_unique<ViewKeeper>(node.endpoint, options)});
    CHECK_OK(others.back().keeper->Open(view));
  }
  AgreeAll(others);  // their votes are of epoch 2 now
  Close(nodes.back());
  const Member dead = nodes.back().endpoint->self();
  nodes.pop_back();
  for (Node& node : nodes) node.endpoint->links().ReportDead(dead.id, "killed", "");
  for (const AgreedView& agreed : AgreeAll(nodes)) CHECK_EQ(agreed.view.members.size(), size_t{2});
  Close(nodes);
}

TEST(a_candidate_is_taken_in_and_learns_everything) {
  std::vector<Node> nodes = StartGroup(2);
  Node joiner = Start(kPatienceS);
  auto welcome =
      std::async(std::launch::async, [&joiner] { return joiner.keeper->AwaitWelcome(kPatienceS); });
  for (Node& node : nodes) {
    CHECK_OK(node.endpoint->links().Connect({joiner.endpoint->self()}, kPatienceS));
    node.keeper->AddCandidate(joiner.endpoint->self(), "new here");
  }
  const std::vector<AgreedView> agreed = AgreeAll(nodes);
  CHECK_EQ(agreed[0].view.members.size(), 3u);
  Result<AgreedView> learnt = welcome.get();
  CHECK_OK(learnt.status());
  CHECK(learnt.value().view.members == agreed[1].view.members);
  CHECK_EQ(learnt.value().decision.seats[2].payload, "new here");
  nodes.push_back(std::move(joiner));
  for (const AgreedView& next : AgreeAll(nodes)) CHECK_EQ(next.view.epoch, 3u);
  Close(nodes);
}

TEST(too_few_are_told_so_and_ask_for_fences_first) {
  std::vector<Node> nodes = StartGroup(2, 0.8);
  Close(nodes[1]);  // the link breaks, and nobody proves a death
  const Result<AgreedView> agreed = nodes[0].keeper->Agree("", kPatienceS);
  CHECK_EQ(agreed.status().code(), StatusCode::kRevoked);
  CHECK(nodes[0].keeper->out() == ViewKeeper::Out::kNoQuorum);
  CHECK(nodes[0].keeper->NextRequest()->kind == ViewRequest::Kind::kFence);
  Close(nodes);
}

TEST(an_agreement_that_takes_too_long_names_whom_it_waits_for) {
  std::vector<Node> nodes = StartGroup(2);
  const Result<AgreedView> agreed = nodes[0].keeper->Agree("", 0.05);
  CHECK_EQ(agreed.status().code(), StatusCode::kDeadlineExceeded);
  CHECK_NE(agreed.status().message().find("rank 1"), std::string::npos);
  Close(nodes);
}

TEST(long_payloads_are_refused) {
  std::vector<Node> nodes = StartGroup(1);
  CHECK_EQ(nodes[0].keeper->Agree(std::string(5000, 'x'), 1).status().code(), StatusCode::kInvalidArgument);
  Close(nodes);
}

int main() { return RUN_ALL_TESTS(); }
