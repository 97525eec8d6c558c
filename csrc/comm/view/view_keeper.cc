#include "comm/view/view_keeper.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <utility>

#include "comm/shared/vote_page.h"
#include "comm/view/wire.h"

namespace elastates {
namespace {

constexpr int kTicksPerTimeout = 16;      // AgreementOptions::silent_ticks
constexpr double kLongestTimeoutS = 1e8;  // three years; what is longer overflows the clock
constexpr size_t kMostPayloadBytes = 4096;
constexpr size_t kSeatBytes = 32;         // of a decision, without the payload
constexpr size_t kNewcomersBytes = 2048;  // what is left for them in a decision at least
constexpr size_t kVoteHeadBytes = 64;     // of a vote, without the two decisions

// A process has one page and may have come to another group since: a vote begins with its group.
std::string TagOf(uint64_t group) {
  wire::Writer writer;
  writer.Put(group);
  return writer.Take();
}

class PageVoteStore : public VoteStore {
 public:
  PageVoteStore(VoteArea* area, uint64_t group) : page_(area), tag_(TagOf(group)) {}
  Status Write(const std::string& bytes) override { return page_.Write(tag_ + bytes); }

 private:
  VotePage page_;
  const std::string tag_;
};

std::unique_ptr<VoteStore> MakeVoteStore(Endpoint& endpoint, uint64_t group) {
  Neighbours* neighbours = endpoint.neighbours();
  if (neighbours == nullptr) return std::make_unique<ForgetfulVoteStore>();
  return std::make_unique<PageVoteStore>(neighbours->own()->votes(), group);
}

// The vote of somebody who is dead; empty if it cannot be read, or is about another group.
std::string VoteOf(Endpoint& endpoint, MemberId member, uint64_t group) {
  Neighbours* neighbours = endpoint.neighbours();
  if (neighbours == nullptr) return "";
  Result<std::string> written = neighbours->VoteOf(member);
  const std::string tag = TagOf(group);
  const bool is_ours = written.ok() && written.value().compare(0, tag.size(), tag) == 0;
  return is_ours ? written.value().substr(tag.size()) : "";
}

// A vote holds two decisions, and must fit into its page.
size_t MostPayloadBytes(size_t num_members) {
  const size_t share = (kVoteBytes / 2 - kNewcomersBytes) / std::max<size_t>(num_members, 1);
  return std::min(kMostPayloadBytes, share > kSeatBytes ? share - kSeatBytes : 0);
}

AgreementOptions MakeOptions(const ViewKeeperOptions& options) {
  AgreementOptions agreement;
  agreement.silent_ticks = kTicksPerTimeout;
  agreement.has_witness = options.has_witness;
  agreement.most_decision_bytes = (kVoteBytes - kVoteHeadBytes) / 2;
  return agreement;
}

}  // namespace

// What callbacks hold on to, weakly: they may come when the keeper is gone. Methods named On... and those
// below them run on the messenger's thread.
class ViewKeeper::Core : public std::enable_shared_from_this<ViewKeeper::Core> {
 public:
  Core(std::shared_ptr<Endpoint> endpoint, ViewKeeperOptions options)
      : endpoint_(std::move(endpoint)),
        options_(std::move(options)),
        group_(GroupId(options_.group)),
        topic_("view-" + std::to_string(group_)),
        votes_(MakeVoteStore(*endpoint_, group_)),
        membership_(endpoint_->self().id, MakeOptions(options_), *votes_) {}

  void Listen() {
    const std::weak_ptr<Core> weak = weak_from_this();
    Hub& hub = endpoint_->hub();
    hub.HandleControl(topic_, [weak](MemberId from, const std::string& content) {
      if (const auto core = weak.lock()) core->OnMessage(from, content);
    });
    hub.HandleLosses([weak](const LostMember& lost) {
      if (const auto core = weak.lock()) core->OnLoss(lost);
    });
    Post([](Core& core) {
      for (const auto& [id, lost] : core.endpoint_->hub().losses()) core.OnLoss(lost);
    });
  }

  Status Open(View view) {
    const std::vector<Member>& members = view.members;
    if (std::find(members.begin(), members.end(), endpoint_->self()) == members.end())
      return Status(StatusCode::kInvalidArgument, "this process is not a member of group " + options_.group);
    num_members_.store(members.size());
    Post([view = std::move(view)](Core& core) {
      const Status opened = core.membership_.Open(view);
      if (!opened.ok()) core.Leave(Out::kNoQuorum, opened.message());
    });
    return Status::Ok();
  }

  Result<AgreedView> Agree(const std::string& payload, double timeout_s) {
    const size_t most = MostPayloadBytes(num_members_.load());
    if (payload.size() > most)
      return Status(StatusCode::kInvalidArgument,
                    "among " + std::to_string(num_members_.load()) + " members a payload may have " +
                        std::to_string(most) + " bytes, this one has " + std::to_string(payload.size()));
    Post([payload](Core& core) { core.OnBegin(payload); });
    return Await(timeout_s);
  }

  Result<AgreedView> Await(double timeout_s) {
    const auto time = std::chrono::duration<double>(std::clamp(timeout_s, 0.0, kLongestTimeoutS));
    std::unique_lock<std::mutex> lock(mutex_);
    const auto is_over = [this] { return !agreed_.empty() || out_ != Out::kIn || is_closed_; };
    if (!changed_.wait_for(lock, time, is_over))
      return Status(StatusCode::kDeadlineExceeded, "no agreement on the next view of group " +
                                                       options_.group + " so far; waiting for rank " +
                                                       missing_);
    if (out_ != Out::kIn) return Status(StatusCode::kRevoked, why_out_);
    if (agreed_.empty()) return Status(StatusCode::kCancelled, "closed");
    AgreedView agreed = std::move(agreed_.front());
    agreed_.pop_front();
    return agreed;
  }

  void AddCandidate(const Member& member, const std::string& payload) {
    endpoint_->links().ConnectLater({member}, options_.failure_timeout_s,
                                    [weak = weak_from_this(), member, payload](Status status) {
                                      const auto core = weak.lock();
                                      if (core && status.ok())
                                        core->Do(core->membership_.AddCandidate({member, payload}));
                                    });
  }

  std::optional<ViewRequest> NextRequest() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !requests_.empty() || is_closed_; });
    if (requests_.empty()) return std::nullopt;
    ViewRequest request = std::move(requests_.front());
    requests_.pop_front();
    return request;
  }

  void AnswerWitness(uint32_t epoch, bool is_swapped, const std::string& actual) {
    Post([epoch, is_swapped, actual](Core& core) {
      if (core.membership_.has_view()) core.Do(core.membership_.OnWitness(epoch, is_swapped, actual));
    });
  }

  Out out() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return out_;
  }

  size_t num_candidates() const { return num_candidates_.load(); }

  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
    changed_.notify_all();
  }

 private:
  template <typename Run>
  void Post(Run run) {
    endpoint_->hub().messenger().RunLater(0, [weak = weak_from_this(), run = std::move(run)] {
      if (const auto core = weak.lock()) run(*core);
    });
  }

  // Not while a decision waits to be fetched: Agree() was called again for that one.
  void OnBegin(const std::string& payload) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!agreed_.empty()) return;
    }
    if (membership_.has_view() && !membership_.is_over()) Do(membership_.Begin(payload));
  }

  void OnMessage(MemberId from, const std::string& content) {
    Result<Actions> actions = membership_.OnMessage(from, content);
    if (actions.ok())
      Do(actions.value());  // else the sender speaks another language: it will be silent for us
  }

  void OnLoss(const LostMember& lost) {
    std::string proof = lost.proof;
    if (lost.loss == Loss::kDead && proof.empty()) proof = VoteOf(*endpoint_, lost.id, group_);
    if (lost.loss == Loss::kDead) dead_.push_back(lost.id);
    Do(membership_.OnLoss(lost.id, lost.loss, proof));
  }

  void Do(const Actions& actions) {
    for (const Action& action : actions) Do(action);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      missing_ = membership_.Missing();
    }
    num_candidates_.store(membership_.num_candidates());
    if (membership_.wants_ticks() && !std::exchange(is_ticking_, true)) TickLater();
  }

  void Do(const Action& action) {
    switch (action.kind) {
      case Action::Kind::kSend:
        return endpoint_->hub().SendControl(action.member, topic_, action.content);
      case Action::Kind::kFence:
        if (!endpoint_->links().Kill(action.member).ok())
          Request({ViewRequest::Kind::kFence, action.member, 0, action.content, ""});
        return;
      case Action::Kind::kWitness:
        return Request({ViewRequest::Kind::kWitness, 0, action.epoch, action.content, action.expected});
      case Action::Kind::kDecided:
        return Deliver(action.content);
      case Action::Kind::kFenced:
        return Leave(Out::kFenced, action.content);
      case Action::Kind::kNoQuorum:
        return Leave(Out::kNoQuorum, action.content);
    }
  }

  void Request(ViewRequest request) {
    std::lock_guard<std::mutex> lock(mutex_);
    requests_.push_back(std::move(request));
    changed_.notify_all();
  }

  void Deliver(const std::string& bytes) {
    Result<Decision> decision = DecodeDecision(bytes);
    if (!decision.ok()) return Leave(Out::kNoQuorum, decision.status().message());
    endpoint_->links().SetEpoch(membership_.view().epoch);
    num_members_.store(membership_.view().members.size());
    ForgetTheDead();
    std::lock_guard<std::mutex> lock(mutex_);
    agreed_.push_back({membership_.view(), std::move(decision).value()});
    changed_.notify_all();
  }

  // Their votes have been read, and nobody asks for the segments of those who are in no view any more.
  void ForgetTheDead() {
    const std::vector<Member>& members = membership_.view().members;
    for (MemberId id : std::exchange(dead_, {})) {
      const bool is_member =
          std::any_of(members.begin(), members.end(), [id](const Member& member) { return member.id == id; });
      if (is_member) {
        dead_.push_back(id);
      } else {
        endpoint_->links().Forget(id);
      }
    }
  }

  void Leave(Out out, const std::string& why) {
    if (options_.exits_when_out && out == Out::kFenced) End(out, why);
    if (options_.exits_when_out) return EndOnceSent(out, why);
    std::lock_guard<std::mutex> lock(mutex_);
    out_ = out;
    why_out_ = why;
    changed_.notify_all();
  }

  // The others on this side hear that it is over from whoever led them, or wait for the failure timeout
  // again, one after the other. Two turns of the messenger: what was to be sent leaves at the end of the
  // first.
  void EndOnceSent(Out out, const std::string& why) {
    Post([out, why](Core& core) { core.Post([out, why](Core& last) { last.End(out, why); }); });
  }

  // Not exit(): that would wait for threads that may hang, and run what writes.
  [[noreturn]] void End(Out out, const std::string& why) {
    const bool is_fenced = out == Out::kFenced;
    std::fprintf(stderr, "elastates: process %d ends, %s group %s: %s\n", endpoint_->self().pid,
                 is_fenced ? "excluded from" : "too few are left of", options_.group.c_str(), why.c_str());
    std::fflush(stderr);
    _exit(is_fenced ? kExitFenced : kExitNoQuorum);
  }

  // One at a time: a process that was stopped makes up for none of those that it has missed.
  void TickLater() {
    const double tick_s = options_.failure_timeout_s / kTicksPerTimeout;
    endpoint_->hub().messenger().RunLater(tick_s, [weak = weak_from_this()] {
      const auto core = weak.lock();
      if (!core) return;
      core->is_ticking_ = false;
      core->Do(core->membership_.OnTick());
    });
  }

  const std::shared_ptr<Endpoint> endpoint_;
  const ViewKeeperOptions options_;
  const uint64_t group_;
  const std::string topic_;
  std::atomic<size_t> num_members_{1}, num_candidates_{0};

  // Of the messenger's thread.
  const std::unique_ptr<VoteStore> votes_;
  Membership membership_;
  bool is_ticking_ = false;
  std::vector<MemberId> dead_;  // whose segments are kept: of the view, or lost since

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // of what follows, all guarded by mutex_
  std::deque<AgreedView> agreed_;
  std::deque<ViewRequest> requests_;
  std::string missing_;
  Out out_ = Out::kIn;
  std::string why_out_;
  bool is_closed_ = false;
};

ViewKeeper::ViewKeeper(std::shared_ptr<Endpoint> endpoint, ViewKeeperOptions options)
    : core_(std::make_shared<Core>(std::move(endpoint), std::move(options))) {
  core_->Listen();
}

Status ViewKeeper::Open(const View& view) { return core_->Open(view); }
Result<AgreedView> ViewKeeper::AwaitWelcome(double timeout_s) { return core_->Await(timeout_s); }
Result<AgreedView> ViewKeeper::Agree(const std::string& payload, double timeout_s) {
  return core_->Agree(payload, timeout_s);
}
void ViewKeeper::AddCandidate(const Member& member, const std::string& payload) {
  core_->AddCandidate(member, payload);
}
std::optional<ViewRequest> ViewKeeper::NextRequest() { return core_->NextRequest(); }
void ViewKeeper::AnswerWitness(uint32_t epoch, bool is_swapped, const std::string& actual) {
  core_->AnswerWitness(epoch, is_swapped, actual);
}
size_t ViewKeeper::num_candidates() const { return core_->num_candidates(); }
ViewKeeper::Out ViewKeeper::out() const { return core_->out(); }
void ViewKeeper::Close() { core_->Close(); }

}  // namespace elastates
