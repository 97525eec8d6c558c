// The hot path: what happens per message and per act, in one translation unit, leaves first, so that it is
// inlined.
//
// What a hop costs: OnReq in the consumer, its share of a turn (act, publish, return), OnAck in the producer.
// On one lane all of these are plain calls; none of them fires anything, so they neither nest nor recurse.

#include <exception>

#include "actor/actor.h"
#include "actor/graph.h"
#include "actor/lane.h"

namespace elastates {

void Actor::LookAgain() {
  if (has_turn_ || (waiting_for_ != 0 && !input_ended_)) return;
  has_turn_ = true;
  lane_->GiveTurn(this);
}

inline void OutPort::Free(Register* reg) {
  if (resets_) Empty(reg);
  if (free_ == nullptr && credit_ == Credit::kRequired) --waiting_for_;
  PushFree(reg);
}

inline void OutPort::OnAck(Register* reg, uint32_t edge) {
  --consumers_[edge].held;
  if (--reg->readers_left != 0) return;
  Free(reg);
  actor_->LookAgain();
}

inline void Actor::ReturnInput(const InPort::Entry& entry) {
  OutPort* home = entry.reg->home;
  uint32_t edge = static_cast<uint32_t>(entry.edge);
  if (home->lane_ == lane_) {
    home->OnAck(entry.reg, edge);
  } else {
    lane_->SendAway(home->lane_, MessageKind::kAck, home->actor_, entry.reg, 0u, edge);
  }
}

inline void InPort::OnReq(Register* reg, uint64_t edge) {
  if (ready_.empty()) --actor_->waiting_for_;
  ready_.Emplace(reg, edge);
  actor_->LookAgain();
}

void InPort::DropFront() {
  ready_.DropFront();
  if (ready_.empty()) ++actor_->waiting_for_;
}

void Actor::ReturnUnread() {
  for (InPort* in : ins_) {
    for (; !in->ready_.empty(); in->DropFront()) ReturnInput(in->ready_.Front());
  }
}

inline void OutPort::SendTo(Consumer* consumer, uint32_t edge, Register* reg) {
  ++consumer->held;
  if (consumer->near != nullptr) return consumer->near->OnReq(reg, edge);
  MessageKind kind = reg->failed ? MessageKind::kError : MessageKind::kReq;
  lane_->SendAway(consumer->actor->lane_, kind, consumer->actor, reg, consumer->port, edge);
}

// Kept apart: it is rare, and would take registers from the straight line through Publish().
[[gnu::noinline]] void OutPort::FanOut(Register* reg) {
  if (consumers_.empty()) return Free(reg);
  if (fanout_ == Fanout::kLeastLoaded) {
    reg->readers_left = 1;
    uint32_t edge = LeastLoaded();
    return SendTo(&consumers_[edge], edge, reg);
  }
  reg->readers_left = static_cast<uint32_t>(consumers_.size());
  for (uint32_t edge = 0; edge < consumers_.size(); ++edge) SendTo(&consumers_[edge], edge, reg);
}

inline void OutPort::Publish(Register* reg, Job* job, bool failed) {
  reg->job = job;
  reg->failed = failed;
  if (sole_consumer_ == nullptr) return FanOut(reg);
  reg->readers_left = 1;
  SendTo(sole_consumer_, 0, reg);
}

// Whether the act's job has failed.
inline bool Actor::InputsFailed() {
  for (InPort* in : ins_) {
    Register* reg = in->front();
    if (reg->failed || reg->job->failed()) {
      FailJobWith(*reg);
      return true;
    }
  }
  return false;
}

inline Status Actor::RunAct() {
  try {
    return Act();
  } catch (const std::exception& error) {
    return Status(StatusCode::kInternal, std::string("exception: ") + error.what());
  } catch (...) {
    return Status(StatusCode::kInternal, "exception of unknown type");
  }
}

// Returns whether what was emitted is to travel as an error.
inline bool Actor::ActAndDrain() {
  bool failed = InputsFailed();
  if (!failed) {
    Status status = RunAct();
    if (status.ok()) return false;
    FailJob(status);
  }
  Drain();
  return true;
}

inline void Actor::FinishAct(bool failed) {
  for (OutPort* out : outs_) {
    Register* reg = out->claimed_;
    if (reg == nullptr) continue;
    out->claimed_ = nullptr;
    out->Publish(reg, act_job_, failed);
  }
  for (InPort* in : ins_) {
    ReturnInput(in->ready_.Front());
    in->DropFront();
  }
}

void Actor::CompleteDeferred(uint16_t slot) {
  DeferredAct& act = deferred_[slot];
  act_job_ = act.job;
  if (!act.status.ok()) FailJob(act.status);
  bool failed = act_job_->failed();
  for (const Output& output : act.outputs) output.port->Publish(output.reg, act_job_, failed);
  for (const InPort::Entry& entry : act.inputs) ReturnInput(entry);
  act.outputs.clear();
  act.inputs.clear();
  act.status = Status::Ok();
  if (free_slots_.empty()) --waiting_for_;
  free_slots_.push_back(slot);
}

inline void Actor::Fire() {
  act_job_ = ins_.empty() ? &graph_->job() : ins_.front()->front()->job;
  bool failed = ActAndDrain();
  if (is_special_ && SettleSpecial()) return;
  FinishAct(failed);
}

int Actor::TakeTurn(int max_acts) {
  has_turn_ = false;  // what changes from now on is worth another one
  int acts_left = max_acts;
  while (CanFire()) {
    if (acts_left == 0) {
      LookAgain();
      break;
    }
    --acts_left;
    Fire();
  }
  if (input_ended_) EndIfDrained();
  return max_acts - acts_left;
}

void Actor::Handle(const Message& message) {
  if (message.kind() <= MessageKind::kError) return ins_[message.port()]->OnReq(message.reg, message.edge());
  if (message.kind() == MessageKind::kAck) return message.reg->home->OnAck(message.reg, message.edge());
  HandleRare(message);
}

}  // namespace elastates
