// The hot path: what happens per message and per act, in one translation unit, leaves first, so that it is
// inlined.
//
// A hop costs two messages: kReq (receive, perhaps fire: act, publish, acknowledge) and kAck (free, perhaps
// fire).

#include <exception>

#include "actor/actor.h"
#include "actor/graph.h"
#include "actor/lane.h"

namespace elastates {
namespace {

// Acts in a row before the lane's other actors get their turn.
constexpr int kMaxBurst = 16;

}  // namespace

inline void OutPort::Free(Register* reg) {
  if (resets_) Reset(reg);
  if (backed_) Unback();  // the backing belongs to the register on top, and that is about to be another
  if (free_ == nullptr && credit_ == Credit::kRequired) --waiting_for_;
  PushFree(reg);
}

inline void OutPort::OnAck(Register* reg, uint32_t edge) {
  --consumers_[edge].held;
  if (--reg->readers_left == 0) Free(reg);
}

inline void OutPort::SendTo(uint32_t edge, Register* reg) {
  Consumer& consumer = consumers_[edge];
  ++consumer.held;
  MessageKind kind = reg->failed ? MessageKind::kError : MessageKind::kReq;
  actor_->lane_->Send(kind, consumer.actor, reg, consumer.port, edge);
}

void OutPort::FanOut(Register* reg) {
  if (consumers_.empty()) return Free(reg);
  if (fanout_ == Fanout::kLeastLoaded) {
    reg->readers_left = 1;
    return SendTo(LeastLoaded(), reg);
  }
  reg->readers_left = static_cast<uint32_t>(consumers_.size());
  for (uint32_t edge = 0; edge < consumers_.size(); ++edge) SendTo(edge, reg);
}

inline void OutPort::Publish(Register* reg, Job* job, bool failed) {
  reg->job = job;
  reg->failed = failed;
  if (consumers_.size() != 1) return FanOut(reg);
  reg->readers_left = 1;
  SendTo(0, reg);
}

void Actor::ReturnInput(Register* reg, uint64_t edge) {
  lane_->Send(MessageKind::kAck, reg->home->actor_, reg, 0u, static_cast<uint32_t>(edge));
}

// Whether the act's job has failed. An input that failed in another job fails this one: its data are missing
// here too.
inline bool Actor::InputsFailed() {
  for (InPort* in : ins_) {
    Register* reg = in->front();
    if (reg->failed || reg->job->failed()) {
      if (reg->job != act_job_) FailJob(reg->job->status());
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
    const InPort::Entry& entry = in->ready_.Front();
    ReturnInput(entry.reg, entry.edge);
    in->ready_.DropFront();
    if (in->ready_.empty()) ++waiting_for_;
  }
}

void Actor::CompleteDeferred(uint16_t slot) {
  DeferredAct& act = deferred_[slot];
  act_job_ = act.job;
  if (!act.status.ok()) FailJob(act.status);
  bool failed = act_job_->failed();
  for (const Output& output : act.outputs) output.port->Publish(output.reg, act_job_, failed);
  for (const InPort::Entry& entry : act.inputs) ReturnInput(entry.reg, entry.edge);
  act.outputs.clear();
  act.inputs.clear();
  act.status = Status::Ok();
  if (free_slots_.empty()) --waiting_for_;
  free_slots_.push_back(slot);
  lane_->AfterAct();
}

inline void Actor::Fire() {
  act_job_ = ins_.empty() ? &graph_->job() : ins_.front()->front()->job;
  bool failed = ActAndDrain();
  if (has_special_outs_) SettleSpecialOuts();
  if (slot_of_act_ >= 0) return StashAct();
  FinishAct(failed);
}

inline void Actor::FireWhilePossible() {
  for (int burst = 0; CanFire(); ++burst) {
    if (burst == kMaxBurst) return WakeAgain();
    Fire();
    lane_->AfterAct();
  }
}

inline void Actor::Receive(const Message& message) {
  if (ended_) return ReturnInput(message.reg, message.edge());
  InPort* in = ins_[message.port()];
  if (in->ready_.empty()) --waiting_for_;
  in->ready_.Emplace(message.reg, message.edge());
}

void Actor::Handle(const Message& message) {
  if (message.kind() <= MessageKind::kError) {
    Receive(message);
  } else if (message.kind() == MessageKind::kAck) {
    message.reg->home->OnAck(message.reg, message.edge());
  } else {
    HandleRare(message);
  }
  FireWhilePossible();
  if (input_ended_) EndIfDrained();
}

}  // namespace elastates
