// Endpoint: what is asked of it when it is closed, and what becomes of it in a forked child.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "comm/endpoint.h"
#include "comm/view/view_keeper.h"

namespace elastates {
namespace {

constexpr double kPatience_s = 60;

std::shared_ptr<Endpoint> Start() {
  LinkPoolOptions options;
  options.job = "endpoints";
  options.secret = "sixteen bytes or more";
  Result<std::shared_ptr<Endpoint>> endpoint = Endpoint::Start(options);
  CHECK_OK(endpoint.status());
  return endpoint.value();
}

// Both with a group of the two.
std::vector<std::shared_ptr<Endpoint>> StartTwo() {
  std::vector<std::shared_ptr<Endpoint>> endpoints = {Start(), Start()};
  View view{1, {}};
  for (const auto& endpoint : endpoints) view.members.push_back(endpoint->self());
  std::vector<std::future<Status>> making;
  for (const auto& endpoint : endpoints)
    making.push_back(std::async(std::launch::async,
                                [&] { return endpoint->MakeGroup("both", view, kPatience_s).status(); }));
  for (auto& made : making) CHECK_OK(made.get());
  return endpoints;
}

// Threads that know nothing of the end, an agent's news among them, may come at any time.
TEST(a_closed_endpoint_can_still_be_asked) {
  const auto endpoints = StartTwo();
  Endpoint& closed = *endpoints[0];
  const Member other = endpoints[1]->self();
  ViewKeeper keeper(endpoints[0], {"both"});
  closed.Close();
  closed.Close();
  closed.links().ReportDead(other.id, "says its agent", "");
  closed.links().SetEpoch(2);
  closed.links().Forget(other.id);
  CHECK_EQ(closed.links().Connect({other}, kPatience_s).code(), StatusCode::kCancelled);
  CHECK_EQ(closed.MakeGroup("late", {1, {closed.self(), other}}, kPatience_s).status().code(),
           StatusCode::kCancelled);
  keeper.AddCandidate(other, "");
  CHECK_EQ(keeper.Agree("", 0).status().code(), StatusCode::kDeadlineExceeded);
  endpoints[1]->Close();
}

// Its groups' threads are not there; the links' neither.
TEST(a_forked_child_ends_although_its_parent_has_groups) {
  auto endpoints = StartTwo();
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(static_cast<unsigned>(kPatience_s));  // instead of hanging
    for (auto& endpoint : endpoints) endpoint->Close();
    endpoints.clear();
    _exit(0);
  }
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  std::promise<void> heard;
  endpoints[1]->hub().HandleControl("hello", [&](MemberId, const std::string&) { heard.set_value(); });
  endpoints[0]->hub().SendControl(endpoints[1]->self().id, "hello", "");
  CHECK(heard.get_future().wait_for(std::chrono::duration<double>(kPatience_s)) == std::future_status::ready);
  for (auto& endpoint : endpoints) endpoint->Close();
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
