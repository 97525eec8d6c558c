// Messages between two members of a group, outside the order of its operations.
#include <cstdlib>
#include <string>

#include "comm/queued_group.h"

namespace elastates {
namespace {

// Keeps messages between two members apart from those of operations.
constexpr uint64_t kPairSequence = uint64_t{1} << 63;

}  // namespace

void QueuedGroup::Send(int to, uint32_t tag, const void* data, size_t size_bytes, Done done) {
  std::unique_lock<std::mutex> lock(mutex_);
  Status failure = FailureLocked();
  if (failure.ok()) {
    Result<MessageAddress> address = NextPairAddressLocked(num_sent_, to, tag);
    failure = address.status();
    if (failure.ok()) {  // posted under the lock: nothing is posted after what Settle() takes back
      messenger_.Send(view_->members[to].id, address.value(), data, size_bytes, std::move(done));
      const auto asked = asked_.find({to, tag});
      if (asked != asked_.end() && num_sent_[{to, tag}] > asked->second) {
        asked_.erase(asked);
        TellLocked(PairMessage::kOffer, to, tag, num_sent_[{to, tag}]);
      }
      return;
    }
  }
  lock.unlock();
  done(failure);
}

void QueuedGroup::Receive(int from, uint32_t tag, void* data, size_t size_bytes, Done done) {
  std::unique_lock<std::mutex> lock(mutex_);
  Status failure = FailureLocked();
  if (failure.ok()) {
    Result<MessageAddress> address = NextPairAddressLocked(num_received_, from, tag);
    failure = address.status();
    if (failure.ok()) {
      messenger_.Receive(view_->members[from].id, address.value(), data, size_bytes, std::move(done));
      return;
    }
  }
  lock.unlock();
  done(failure);
}

Result<MessageAddress> QueuedGroup::NextPairAddressLocked(PairCounts& counts, int peer, uint32_t tag) {
  const int size = static_cast<int>(view_->members.size());
  if (peer < 0 || peer >= size || peer == rank_) {
    return Status(StatusCode::kInvalidArgument, "rank " + std::to_string(peer) + " is no peer of rank " +
                                                    std::to_string(rank_) + " in a group of " +
                                                    std::to_string(size));
  }
  return MessageAddress{id_, view_->epoch, tag, kPairSequence | counts[{peer, tag}]++};
}

void QueuedGroup::ReceiveAny(uint32_t tag, void* data, size_t size_bytes, DoneFrom done) {
  std::unique_lock<std::mutex> lock(mutex_);
  const Status failure = FailureLocked();
  if (!failure.ok()) {
    lock.unlock();
    return done(failure, -1);
  }
  any_receives_.push_back({tag, data, size_bytes, std::move(done)});
  MatchOffersLocked(tag);
}

// Gives what waits for this tag to peers that have sent more than has been received, and asks all if some
// wait on.
void QueuedGroup::MatchOffersLocked(uint32_t tag) {
  const int size = static_cast<int>(view_->members.size());
  bool is_waiting = false;
  for (auto receive = any_receives_.begin(); receive != any_receives_.end();) {
    int from = 0;
    while (from < size && offered_[{from, tag}] <= num_received_[{from, tag}]) ++from;
    if (receive->tag != tag || from == size) {
      is_waiting |= receive->tag == tag;
      ++receive;
      continue;
    }
    const MessageAddress address = NextPairAddressLocked(num_received_, from, tag).value();
    messenger_.Receive(view_->members[from].id, address, receive->data, receive->size_bytes,
                       [done = std::move(receive->done), from](Status status) {
                         const int source = status.ok() ? from : -1;
                         done(std::move(status), source);
                       });
    receive = any_receives_.erase(receive);
  }
  for (int peer = 0; is_waiting && peer < size; ++peer) {
    if (peer != rank_) TellLocked(PairMessage::kAsk, peer, tag, num_received_[{peer, tag}]);
  }
}

// "<group> <epoch> <kind> <tag> <count>"
void QueuedGroup::TellLocked(PairMessage kind, int to, uint32_t tag, uint64_t count) {
  if (!send_pair_message_) return;
  send_pair_message_(view_->members[to].id, std::to_string(id_) + " " + std::to_string(view_->epoch) + " " +
                                                std::to_string(static_cast<int>(kind)) + " " +
                                                std::to_string(tag) + " " + std::to_string(count));
}

void QueuedGroup::OnPairMessage(MemberId from, const std::string& content) {
  char* rest = nullptr;
  std::strtoull(content.c_str(), &rest, 10);  // the group, by which it has been brought here
  const uint32_t epoch = static_cast<uint32_t>(std::strtoul(rest, &rest, 10));
  const auto kind = static_cast<PairMessage>(std::strtol(rest, &rest, 10));
  const uint32_t tag = static_cast<uint32_t>(std::strtoul(rest, &rest, 10));
  const uint64_t count = std::strtoull(rest, &rest, 10);

  std::lock_guard<std::mutex> lock(mutex_);
  if (epoch > view_->epoch) early_pair_messages_.emplace_back(from, content);
  if (epoch != view_->epoch || phase_ != Phase::kOpen) return;
  int peer = 0;
  while (peer < static_cast<int>(view_->members.size()) && view_->members[peer].id != from) ++peer;
  if (peer == static_cast<int>(view_->members.size())) return;
  if (kind == PairMessage::kOffer) {
    offered_[{peer, tag}] = count;
    MatchOffersLocked(tag);
  } else if (num_sent_[{peer, tag}] > count) {
    TellLocked(PairMessage::kOffer, peer, tag, num_sent_[{peer, tag}]);
  } else {
    asked_[{peer, tag}] = count;
  }
}

void QueuedGroup::SetPairMessages(SendPairMessage send) { send_pair_message_ = std::move(send); }

void QueuedGroup::ForgetPairsLocked() {
  num_sent_.clear();
  num_received_.clear();
  offered_.clear();
  asked_.clear();
}

}  // namespace elastates
