// What the tests of links are put together from: pools of one job, posts that can be waited for, losses.
#ifndef ELASTATES_TESTS_CSRC_COMM_LINKS_H_
#define ELASTATES_TESTS_CSRC_COMM_LINKS_H_

#include <chrono>
#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "comm/link_pool.h"

namespace elastates {

constexpr auto kPatience = std::chrono::seconds(60);
constexpr double kPatience_s = 60;

// The outcome of one post.
class Outcome {
 public:
  MessageDone Done() {
    return [promise = promise_](Status status) { promise->set_value(std::move(status)); };
  }
  Status Wait() {
    CHECK(future_.wait_for(kPatience) == std::future_status::ready);
    return future_.get();
  }
  bool IsDone() const { return future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }

 private:
  std::shared_ptr<std::promise<Status>> promise_ = std::make_shared<std::promise<Status>>();
  std::future<Status> future_ = promise_->get_future();
};

// An observer that remembers.
class Witness {
 public:
  struct LossSeen {
    MemberId peer;
    Loss loss;
    std::string why, proof;
  };

  Messenger::Observer Observer() {
    return {[this](MemberId from, const std::string& content) {
              Add([&] { controls.emplace_back(from, content); });
            },
            [this](MemberId peer, Loss loss, const std::string& why, const std::string& proof) {
              Add([&] { losses.push_back({peer, loss, why, proof}); });
            }};
  }
  // Until there are so many; false: not within the patience.
  bool WaitForControls(size_t count) {
    return WaitUntil([&] { return controls.size() >= count; });
  }
  bool WaitForLosses(size_t count) {
    return WaitUntil([&] { return losses.size() >= count; });
  }
  bool WaitForDeath(MemberId peer) {
    return WaitUntil([&] {
      for (const LossSeen& seen : losses)
        if (seen.peer == peer && seen.loss == Loss::kDead) return true;
      return false;
    });
  }

  // Read after a wait, or with the pool gone.
  std::vector<std::pair<MemberId, std::string>> controls;
  std::vector<LossSeen> losses;

 private:
  template <typename Change>
  void Add(const Change& change) {
    std::lock_guard<std::mutex> lock(mutex_);
    change();
    changed_.notify_all();
  }
  template <typename Holds>
  bool WaitUntil(const Holds& holds) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, kPatience, holds);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
};

inline LinkPoolOptions JobOptions() {
  LinkPoolOptions options;
  options.job = "job-7";
  options.secret = "a secret of more than sixteen bytes";
  return options;
}

inline LinkPoolOptions RemoteOptions(const std::string& host) {
  LinkPoolOptions options = JobOptions();
  options.host = host;  // a stranger to all others of this machine, so that TCP is taken
  return options;
}

inline std::unique_ptr<LinkPool> StartPool(LinkPoolOptions options) {
  Result<std::unique_ptr<LinkPool>> started = LinkPool::Start(std::move(options));
  CHECK_OK(started.status());
  return std::move(started).value();
}

inline MessageAddress At(uint64_t sequence, uint32_t epoch = 1, uint32_t tag = 0) {
  return {7, epoch, tag, sequence};
}

// All of them call Connect() for all at the same time.
inline void ConnectAll(const std::vector<LinkPool*>& pools) {
  std::vector<Member> members;
  for (const LinkPool* pool : pools) members.push_back(pool->self());
  std::vector<std::future<Status>> calls;
  for (LinkPool* pool : pools)
    calls.push_back(std::async(std::launch::async, [=] { return pool->Connect(members, kPatience_s); }));
  for (auto& call : calls) CHECK_OK(call.get());
}

inline std::string Pattern(size_t size_bytes, unsigned seed = 1) {
  std::string bytes(size_bytes, '\0');
  uint32_t state = seed * 2654435761u + 1;
  for (char& c : bytes) {
    state = state * 1664525u + 1013904223u;
    c = static_cast<char>(state >> 24);
  }
  return bytes;
}

// One message, posted on both sides.
inline void Exchange(LinkPool* from, LinkPool* to, const MessageAddress& at, const std::string& sent) {
  std::string got(sent.size(), '?');
  Outcome sending, receiving;
  to->Receive(from->self().id, at, got.data(), got.size(), receiving.Done());
  from->Send(to->self().id, at, sent.data(), sent.size(), sending.Done());
  CHECK_OK(sending.Wait());
  CHECK_OK(receiving.Wait());
  CHECK(got == sent);
}

}  // namespace elastates

#endif  // ELASTATES_TESTS_CSRC_COMM_LINKS_H_
