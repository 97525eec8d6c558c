// What the tests of groups and collectives share: the members of one group in one process, each with its hub.
#ifndef ELASTATES_TESTS_CSRC_COMM_PARTS_H_
#define ELASTATES_TESTS_CSRC_COMM_PARTS_H_

#include <chrono>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "comm/hub.h"
#include "comm_loopback.h"

namespace elastates {

constexpr auto kPatience = std::chrono::seconds(60);
constexpr double kLongS = 50;

// How collectives travel: by the messages of the net, or through memory as between processes of one host,
// with or without reading each other's private memory; or both, with every other member on another host.
enum class Way { kMessages, kSharedMemory, kWindows, kTwoHosts };

// One group that all members of a net are in.
class Team {
 public:
  explicit Team(int size, LoopbackOptions options = {}, Way way = Way::kMessages)
      : net_(std::make_unique<LoopbackNet>(size, options)) {
    if (way != Way::kMessages) ShareMemory(size);
    if (way == Way::kWindows) setenv(kNoReads, "1", 1);
    View view;
    view.epoch = 1;
    for (int rank = 0; rank < size; ++rank) {
      view.members.push_back(net_->member(rank));
      if (way == Way::kTwoHosts) view.members.back().host = rank % 2 == 0 ? "even" : "odd";
    }
    for (int rank = 0; rank < size; ++rank) {
      Neighbours* neighbours = neighbours_.empty() ? nullptr : neighbours_[rank].get();
      hubs_.push_back(std::make_unique<Hub>(net_->at(rank), neighbours));
    }
    for (int rank = 0; rank < size; ++rank) {
      Result<std::shared_ptr<QueuedGroup>> group = hubs_[rank]->MakeGroup("team", view);
      CHECK_OK(group.status());
      groups_.push_back(group.value());
    }
  }
  ~Team() {
    for (size_t rank = 0; rank < groups_.size(); ++rank) hubs_[rank]->CloseGroup(groups_[rank]);
    net_.reset();  // first: its threads call the hubs
    unsetenv(kNoReads);
  }

  int size() const { return static_cast<int>(groups_.size()); }
  LoopbackNet& net() { return *net_; }
  Hub& hub(int rank) { return *hubs_[rank]; }
  QueuedGroup& at(int rank) { return *groups_[rank]; }

  // Queues an operation; its outcome comes through the future.
  std::future<Status> Run(int rank, Group::Body body, double timeout_s = kLongS) {
    auto promise = std::make_shared<std::promise<Status>>();
    groups_[rank]->Run(std::move(body), timeout_s,
                       [promise](Status status) { promise->set_value(std::move(status)); });
    return promise->get_future();
  }

 private:
  static constexpr char kNoReads[] = "ELASWAVE_NO_REMOTE_READS";

  void ShareMemory(int size) {
    for (int rank = 0; rank < size; ++rank) {
      Result<std::unique_ptr<SharedSegment>> segment = SharedSegment::Create(net_->member(rank).id);
      CHECK_OK(segment.status());
      segments_.push_back(std::move(segment).value());
    }
    const auto fd_of = [this](MemberId id) {
      for (const auto& segment : segments_) {
        if (segment->control().member == id) return segment->fd();
      }
      return -1;
    };
    for (const auto& segment : segments_) {
      neighbours_.push_back(std::make_unique<Neighbours>(segment.get(), fd_of));
    }
  }

  std::vector<std::unique_ptr<SharedSegment>> segments_;
  std::vector<std::unique_ptr<Neighbours>> neighbours_;
  std::unique_ptr<LoopbackNet> net_;
  std::vector<std::unique_ptr<Hub>> hubs_;
  std::vector<std::shared_ptr<QueuedGroup>> groups_;
};

inline Status Outcome(std::future<Status>& future) {
  CHECK(future.wait_for(kPatience) == std::future_status::ready);
  return future.get();
}

}  // namespace elastates

#endif  // ELASTATES_TESTS_CSRC_COMM_PARTS_H_
