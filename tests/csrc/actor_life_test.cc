// Failures, deferred acts, closing and the stall dump.

#include <future>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "actor/actor_bench.h"
#include "actor/graph.h"
#include "actor_parts.h"
#include "base/thread.h"
#include "check.h"

namespace elastates {
namespace {

Apply::Function FailAt(int number) {
  return [number](int in, int* out) {
    *out = in;
    return in == number ? Status(StatusCode::kIoError, "bad number") : Status::Ok();
  };
}

TEST(failure_drains_the_graph_and_surfaces_once_with_the_actors_name) {
  Graph graph;
  auto& numbers = graph.Add<Numbers>(graph.AddLane("a"), 1 << 30);  // ends only because the graph fails
  auto& good = graph.Add<Apply>(graph.AddLane("b"), "good", Plus(0));
  auto& bad = graph.Add<Apply>(graph.AddLane("c"), "bad", FailAt(100));
  auto& collect = graph.Add<Collect>(graph.AddLane("d"));
  graph.Connect(numbers.out, good.in);
  graph.Connect(good.out, bad.in);
  graph.Connect(bad.out, collect.in);
  graph.Start();
  Status status = graph.Wait();
  CHECK(status.code() == StatusCode::kIoError);
  CHECK_EQ(status.message(), std::string("bad: bad number"));
  CHECK(collect.values.size() <= 100);  // numbers before the failure may be dropped, none after it arrives
  CHECK(collect.num_errors >= 1);
  CHECK_EQ(numbers.out.num_free(), numbers.out.num_registers());
  CHECK_EQ(bad.out.num_free(), bad.out.num_registers());
}

TEST(exception_in_an_act_is_a_failure_like_any_other) {
  Graph graph;
  Lane& lane = graph.AddLane("a");
  auto& numbers = graph.Add<Numbers>(lane, 10);
  auto& bad =
      graph.Add<Apply>(lane, "thrower", [](int, int*) -> Status { throw std::runtime_error("boom"); });
  graph.Connect(numbers.out, bad.in);
  graph.Start();
  Status status = graph.Wait();
  CHECK(status.code() == StatusCode::kInternal);
  CHECK_EQ(status.message(), std::string("thrower: exception: boom"));
}

// Number n belongs to job n % jobs.
class NumbersOfJobs : public Actor {
 public:
  NumbersOfJobs(int count, std::vector<Job>* jobs) : Actor("numbers"), count_(count), jobs_(*jobs) {}
  Out<int> out{this, "out", 4};

 private:
  Supply Poll() override { return next_ < count_ ? Supply::kReady : Supply::kEnd; }
  Status Act() override {
    BeginJob(&jobs_[next_ % jobs_.size()]);
    out.Emit() = next_++;
    return Status::Ok();
  }
  const int count_;
  std::vector<Job>& jobs_;
  int next_ = 0;
};

TEST(failed_job_drains_alone) {
  std::vector<Job> jobs(3);
  Graph graph;
  auto& numbers = graph.Add<NumbersOfJobs>(graph.AddLane("a"), 300, &jobs);
  auto& bad = graph.Add<Apply>(graph.AddLane("b"), "bad", FailAt(31));  // of job 1
  auto& collect = graph.Add<Collect>(graph.AddLane("c"));
  graph.Connect(numbers.out, bad.in);
  graph.Connect(bad.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK(jobs[0].status().ok());
  CHECK(jobs[2].status().ok());
  CHECK_EQ(jobs[1].status().message(), std::string("bad: bad number"));
  CHECK_EQ(collect.values.size() + collect.num_errors,
           300u);  // every register came through, full or as an error
  int of_others = 0;
  for (int value : collect.values) of_others += value % 3 != 1;
  CHECK_EQ(of_others, 200);
  CHECK(collect.num_errors >= 90);  // 31, 34, ... 298
}

TEST(first_failure_of_a_job_wins) {
  Job job;
  CHECK(job.Fail("first", Status(StatusCode::kIoError, "x")));
  CHECK(!job.Fail("second", Status(StatusCode::kNoSpace, "y")));
  CHECK_EQ(job.status().message(), std::string("first: x"));
}

// Completes acts on another thread, youngest first.
class Reverser {
 public:
  void Add(Completion completion, Status status) {
    std::lock_guard<std::mutex> lock(mutex_);
    waiting_.push_back({completion, status});
    added_.notify_one();
  }
  void Run(int count) {
    for (int i = 0; i < count; ++i) {
      std::unique_lock<std::mutex> lock(mutex_);
      added_.wait(lock, [this] { return !waiting_.empty(); });
      auto [completion, status] = waiting_.back();
      waiting_.pop_back();
      lock.unlock();
      completion.Complete(status);
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable added_;
  std::vector<std::pair<Completion, Status>> waiting_;
};

class DeferredCopy : public Actor {
 public:
  static constexpr int kDepth = 4;
  DeferredCopy(Reverser* reverser, int fail_at)
      : Actor("deferred", kDepth), reverser_(*reverser), fail_at_(fail_at) {}
  In<int> in{this, "in"};
  Out<int> out{this, "out", 8};

 private:
  Status Act() override {
    out.Emit() = in.Get();
    Status status = in.Get() == fail_at_ ? Status(StatusCode::kNoSpace, "full") : Status::Ok();
    reverser_.Add(Defer(), status);
    return Status::Ok();
  }
  Reverser& reverser_;
  const int fail_at_;
};

TEST(deferred_acts_complete_out_of_order_from_another_thread) {
  constexpr int kCount = 2000;
  Reverser reverser;
  NamedThread completer("completer", [&] { reverser.Run(kCount); });
  Graph graph;
  Lane& lane = graph.AddLane("a");
  auto& numbers = graph.Add<Numbers>(lane, kCount, 8);
  auto& deferred = graph.Add<DeferredCopy>(lane, &reverser, -1);
  auto& collect = graph.Add<Collect>(lane);
  graph.Connect(numbers.out, deferred.in);
  graph.Connect(deferred.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  std::set<int> distinct(collect.values.begin(), collect.values.end());
  CHECK_EQ(collect.values.size(), size_t{kCount});
  CHECK_EQ(distinct.size(), size_t{kCount});
}

TEST(deferred_act_that_fails_travels_as_an_error) {
  constexpr int kCount = 50;
  Reverser reverser;
  std::vector<Job> jobs(kCount);  // so that one failure does not stop the others
  NamedThread completer("completer", [&] { reverser.Run(kCount); });
  Graph graph;
  Lane& lane = graph.AddLane("a");
  auto& numbers = graph.Add<NumbersOfJobs>(lane, kCount, &jobs);
  auto& deferred = graph.Add<DeferredCopy>(lane, &reverser, 20);
  auto& collect = graph.Add<Collect>(lane);
  graph.Connect(numbers.out, deferred.in);
  graph.Connect(deferred.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK_EQ(collect.num_errors, 1);
  CHECK_EQ(collect.values.size(), size_t{kCount - 1});
  CHECK_EQ(jobs[20].status().message(), std::string("deferred: full"));
}

// Offers what others put into it; idle in between.
class Mailbox : public Actor {
 public:
  Mailbox() : Actor("mailbox") {}
  Out<int> out{this, "out", 2};
  void Put(int value) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      values_.push_back(value);
    }
    Wake();
  }

 private:
  Supply Poll() override {
    std::lock_guard<std::mutex> lock(mutex_);
    return next_ < values_.size() ? Supply::kReady : Supply::kIdle;
  }
  Status Act() override {
    std::lock_guard<std::mutex> lock(mutex_);
    out.Emit() = values_[next_++];
    return Status::Ok();
  }
  std::mutex mutex_;
  std::vector<int> values_;
  size_t next_ = 0;
};

TEST(close_while_busy_delivers_what_was_put_and_is_idempotent) {
  for (int round = 0; round < 50; ++round) {
    Graph graph;
    auto& mailbox = graph.Add<Mailbox>(graph.AddLane("a"));
    auto& plus = graph.Add<Apply>(graph.AddLane("b"), "plus", Plus(1));
    auto& collect = graph.Add<Collect>(graph.AddLane("c"));
    graph.Connect(mailbox.out, plus.in);
    graph.Connect(plus.out, collect.in);
    graph.Start();
    for (int i = 0; i < 100; ++i) mailbox.Put(i);
    NamedThread other("closer", [&] { graph.Close(); });
    graph.Close();
    other.Join();
    graph.Close();
    CHECK_EQ(collect.values.size(), 100u);
    mailbox.Put(1);  // after the end: no effect, no crash
  }
}

TEST(graph_that_never_started_closes) {
  Graph graph;
  graph.Add<Numbers>(graph.AddLane("a"), 10);
  graph.Close();
  CHECK(graph.job().status().ok());
}

TEST(cancel_ends_endless_sources) {
  Graph graph;
  auto& numbers = graph.Add<Numbers>(graph.AddLane("a"), 1 << 30);
  graph.Connect(numbers.out, graph.Add<Collect>(graph.AddLane("b")).in);
  graph.Start();
  graph.Cancel(Status(StatusCode::kCancelled, "enough"));
  CHECK_EQ(graph.Wait().message(), std::string("cancelled: enough"));
}

TEST(stall_dump_names_who_waits_for_whom) {
  Graph graph;
  auto& numbers = graph.Add<Numbers>(graph.AddLane("a"), 10, 2);
  auto& stuck = graph.Add<Collect>(graph.AddLane("b"), "stuck");
  auto& mailbox = graph.Add<Mailbox>(graph.AddLane("c"));
  auto& hungry = graph.Add<Collect>(graph.AddLane("d"), "hungry");
  graph.Connect(numbers.out, stuck.in);
  graph.Connect(mailbox.out, hungry.in);
  std::promise<void> entered, release;
  stuck.before_act = [&, first = true]() mutable {
    if (!std::exchange(first, false)) return;
    entered.set_value();
    release.get_future().wait();
  };
  graph.Start();
  entered.get_future().wait();
  std::string text = graph.Describe(/*timeout_s=*/0.2);
  release.set_value();
  CHECK(text.find("stuck (b) no answer: its lane is busy in stuck") != std::string::npos);
  CHECK(text.find("hungry (d) waits: [in: nothing from mailbox]") != std::string::npos);
  CHECK(text.find("numbers (a) ") != std::string::npos);
  CHECK(text.find("stuck holds ") != std::string::npos);
}

TEST(benchmarks_run_and_memory_stays_constant) {
  CHECK(SameThreadHopNs(100000) > 0);
  CHECK(CrossThreadMessagesPerS(100000) > 0);
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  CHECK(CrossThreadRssGrowthBytes(3000000) < (1 << 20));
#endif
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
