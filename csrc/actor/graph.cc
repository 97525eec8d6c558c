#include "actor/graph.h"

#include <cassert>
#include <chrono>

namespace elastates {

Graph::~Graph() { Close(); }

Lane& Graph::AddLane(std::string name, Flush flush) {
  assert(!started_);
  lanes_.push_back(std::make_unique<Lane>(std::move(name), lanes_.size(), flush));
  return *lanes_.back();
}

void Graph::Adopt(std::unique_ptr<Actor> actor, Lane* lane) {
  assert(!started_);
  actor->graph_ = this;
  actor->lane_ = lane;
  actors_.push_back(std::move(actor));
}

void Graph::ConnectPorts(OutPort* from, InPort* to) {
  assert(!started_);
  InPort* near = from->actor_->lane_ == to->actor_->lane_ ? to : nullptr;
  from->consumers_.push_back({to->actor_, near, to->index_, 0});
  to->capacity_ += from->num_registers();
  ++to->open_producers_;
  to->producer_names_.push_back(from->actor_->name());
}

size_t Graph::PrepareActors() {
  size_t max_messages = 0;
  for (auto& actor : actors_) {
    actor->waiting_for_ = static_cast<uint32_t>(actor->ins_.size());
    actor->has_conditions_ = actor->ins_.empty();
    actor->is_special_ = !actor->deferred_.empty();
    for (InPort* in : actor->ins_) in->ready_.Reserve(in->capacity_);
    for (OutPort* out : actor->outs_) {
      out->lane_ = actor->lane_;
      if (out->consumers_.size() == 1) out->sole_consumer_ = &out->consumers_[0];
      actor->has_conditions_ |= out->backed_;
      actor->is_special_ |= out->backed_ || out->credit_ == Credit::kLossy;
      max_messages += (out->num_registers() + 1) * out->consumers_.size();  // REQ or ACK each, and the EORD
    }
    for (Actor::DeferredAct& act : actor->deferred_) {
      act.inputs.reserve(actor->ins_.size());
      act.outputs.reserve(actor->outs_.size());
    }
    max_messages += actor->deferred_.size() + 2;  // kDone; one kWake and one kDescribe
  }
  return max_messages;
}

void Graph::Start() {
  assert(!started_);
  started_ = true;
  actors_left_ = actors_.size();
  size_t max_messages = PrepareActors();
  std::vector<Lane*> lanes;
  for (auto& lane : lanes_) lanes.push_back(lane.get());
  for (Lane* lane : lanes) lane->Prepare(actors_.size(), max_messages, lanes);
  for (Lane* lane : lanes) lane->Start();
  WakeSources();
}

void Graph::WakeSources() {
  for (auto& actor : actors_) {
    if (actor->ins_.empty()) actor->Wake();
  }
}

Status Graph::Wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return actors_left_ == 0; });
  return job_.status();
}

void Graph::Cancel(const Status& status) {
  if (job_.Fail("cancelled", status)) WakeSources();
}

void Graph::Close() {
  std::lock_guard<std::mutex> closing(close_mutex_);
  if (!started_) return;
  closing_.store(true, std::memory_order_release);
  WakeSources();
  // The failure, if there was one, stays in job(): whoever closes need not be the one who asks for it.
  (void)Wait();
  for (auto& lane : lanes_) lane->Stop();
  for (auto& lane : lanes_) lane->Join();
}

void Graph::OnActorRetired() {
  std::lock_guard<std::mutex> lock(mutex_);
  --actors_left_;
  changed_.notify_all();
}

std::string Graph::Describe(double timeout_s) {
  std::lock_guard<std::mutex> one_at_a_time(describe_mutex_);
  std::unique_lock<std::mutex> lock(mutex_);
  descriptions_.resize(actors_.size());
  for (size_t i = 0; i < actors_.size(); ++i) {
    Actor* actor = actors_[i].get();
    bool asked_before = descriptions_[i].actor != nullptr && descriptions_[i].line.empty();
    descriptions_[i] = {actor, ""};
    if (!asked_before) actor->lane_->Post({MessageKind::kDescribe, actor});
  }
  auto all_answered = [this] {
    for (const Description& description : descriptions_) {
      if (description.line.empty()) return false;
    }
    return true;
  };
  changed_.wait_for(lock, std::chrono::duration<double>(timeout_s), all_answered);
  std::string text;
  for (size_t i = 0; i < actors_.size(); ++i) {
    const Actor* busy = actors_[i]->lane_->running();
    std::string line = descriptions_[i].line;
    if (line.empty())
      line = busy == nullptr ? "no answer: its lane has stopped"
                             : "no answer: its lane is busy in " + busy->name();
    text += actors_[i]->name() + " (" + actors_[i]->lane_->name() + ") " + line + "\n";
  }
  return text;
}

void Graph::OnDescribed(const Actor& actor, std::string line) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (Description& description : descriptions_) {
    if (description.actor == &actor) description.line = std::move(line);
  }
  changed_.notify_all();
}

}  // namespace elastates
