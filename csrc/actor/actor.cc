#include "actor/actor.h"

#include <exception>

#include "actor/graph.h"
#include "actor/lane.h"

namespace elastates {
namespace {

// Acts in a row before the lane's other actors get their turn.
constexpr int kMaxBurst = 16;

}  // namespace

void Completion::Complete(Status status) const {
  actor_->deferred_[slot_].status = std::move(status);
  actor_->lane_->Post({MessageKind::kDone, actor_, nullptr, slot_});
}

Actor::Actor(std::string name, uint16_t max_deferred) : name_(std::move(name)), deferred_(max_deferred) {
  for (uint16_t slot = 0; slot < max_deferred; ++slot) free_slots_.push_back(slot);
}

void Actor::Wake() {
  if (wake_pending_.exchange(true, std::memory_order_acq_rel)) return;
  lane_->Post({MessageKind::kWake, this});
}

void Actor::Handle(const Message& message) {
  switch (message.kind()) {
    case MessageKind::kReq:
    case MessageKind::kError:
      Receive(message);
      break;
    case MessageKind::kAck:
      message.reg->home->OnAck(message.reg, message.edge());
      break;
    case MessageKind::kEord:
      --ins_[message.port()]->open_producers_;
      input_ended_ = true;
      break;
    case MessageKind::kDone:
      CompleteDeferred(message.port());
      break;
    case MessageKind::kWake:
      // Cleared before looking, so that a wake from now on is a new message.
      wake_pending_.exchange(false, std::memory_order_acq_rel);
      break;
    case MessageKind::kDescribe:
      graph_->OnDescribed(*this, Describe());
      break;
  }
  FireWhilePossible();
  if (input_ended_ && !ended_) EndIfDrained();
  if (ended_) RetireIfHome();
}

void Actor::Receive(const Message& message) {
  if (ended_) return ReturnInput(message.reg, message.edge());
  InPort* in = ins_[message.port()];
  if (in->ready_.empty()) --waiting_for_;
  in->ready_.Emplace(message.reg, message.edge());
}

void Actor::FireWhilePossible() {
  for (int burst = 0; burst < kMaxBurst; ++burst) {
    if (!CanFire()) return;
    Fire();
    lane_->AfterAct();
  }
  if (wake_pending_.exchange(true, std::memory_order_acq_rel)) return;
  lane_->Send(MessageKind::kWake, this);
}

bool Actor::ConditionsHold() {
  if (ins_.empty()) {
    Supply supply = graph_->job().failed() ? Supply::kEnd : Poll();
    if (supply == Supply::kEnd || (supply == Supply::kIdle && graph_->closing())) input_ended_ = true;
    if (supply != Supply::kReady) return false;
  }
  for (OutPort* out : outs_) {
    if (!out->TryBack() && out->credit_ == Credit::kRequired) return false;
  }
  return true;
}

void Actor::Fire() {
  act_job_ = ins_.empty() ? &graph_->job() : ins_.front()->front()->job;
  bool failed = ActAndDrain();
  for (OutPort* out : outs_) {
    if (out->credit_ == Credit::kLossy && out->claimed_ == nullptr && !out->HasCredit()) ++out->num_skipped_;
    if (out->backed_) out->Unback();
  }
  if (slot_of_act_ >= 0) return StashAct();
  FinishAct(failed);
}

// Returns whether what was emitted is to travel as an error.
bool Actor::ActAndDrain() {
  bool failed = InputsFailed();
  if (!failed) {
    Status status = RunAct();
    if (status.ok()) return false;
    FailJob(status);
  }
  Drain();
  return true;
}

Status Actor::RunAct() {
  try {
    return Act();
  } catch (const std::exception& error) {
    return Status(StatusCode::kInternal, std::string("exception: ") + error.what());
  } catch (...) {
    return Status(StatusCode::kInternal, "exception of unknown type");
  }
}

// Whether the act's job has failed. An input that failed in another job fails this one: its data are missing
// here too.
bool Actor::InputsFailed() {
  for (InPort* in : ins_) {
    Register* reg = in->front();
    if (reg->failed || reg->job->failed()) {
      if (reg->job != act_job_) FailJob(reg->job->status());
      return true;
    }
  }
  return act_job_->failed();
}

void Actor::FailJob(const Status& status) {
  bool first = act_job_->Fail(name_, status);
  if (first && act_job_ == &graph_->job()) graph_->WakeSources();
}

void Actor::Drain() {
  for (OutPort* out : outs_) out->TryClaim();
}

void Actor::FinishAct(bool failed) {
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

void Actor::ReturnInput(Register* reg, uint64_t edge) {
  lane_->Send(MessageKind::kAck, reg->home->actor_, reg, 0u, static_cast<uint32_t>(edge));
}

Completion Actor::Defer() {
  assert(slot_of_act_ < 0 && !free_slots_.empty());
  slot_of_act_ = free_slots_.back();
  return Completion(this, static_cast<uint16_t>(slot_of_act_));
}

void Actor::StashAct() {
  DeferredAct& act = deferred_[slot_of_act_];
  slot_of_act_ = -1;
  free_slots_.pop_back();
  if (free_slots_.empty()) ++waiting_for_;
  act.job = act_job_;
  for (OutPort* out : outs_) {
    if (out->claimed_ != nullptr) act.outputs.push_back({out, out->claimed_});
    out->claimed_ = nullptr;
  }
  for (InPort* in : ins_) {
    act.inputs.push_back(in->ready_.Front());
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

void Actor::EndIfDrained() {
  bool ended = ins_.empty();
  for (InPort* in : ins_) ended = ended || in->ended();
  if (ended && free_slots_.size() == deferred_.size()) End();
}

void Actor::End() {
  ended_ = true;
  OnEnd();
  for (InPort* in : ins_) {
    for (; !in->ready_.empty(); in->ready_.DropFront()) {
      ReturnInput(in->ready_.Front().reg, in->ready_.Front().edge);
    }
  }
  for (OutPort* out : outs_) {
    for (const OutPort::Consumer& consumer : out->consumers_) {
      lane_->Send(MessageKind::kEord, consumer.actor, nullptr, consumer.port);
    }
  }
}

void Actor::RetireIfHome() {
  if (retired_) return;
  for (OutPort* out : outs_) {
    if (!out->all_home()) return;
  }
  retired_ = true;
  graph_->OnActorRetired();
}

std::string Actor::Describe() const {
  if (retired_) return "ended";
  std::string text = ended_ ? "ended, but" : waiting_for_ == 0 ? "can fire" : "waits:";
  for (const InPort* in : ins_) {
    if (!in->ready_.empty()) continue;
    text += " [" + in->name_ + ": nothing from";
    for (const std::string& producer : in->producer_names_) text += " " + producer;
    text += "]";
  }
  for (const OutPort* out : outs_) {
    if (!out->free_.empty() && !ended_) continue;
    text += " [" + out->name_ + ": " + std::to_string(out->num_free()) + " of " +
            std::to_string(out->num_registers()) + " registers free";
    for (const OutPort::Consumer& consumer : out->consumers_) {
      text += ", " + consumer.actor->name() + " holds " + std::to_string(consumer.held);
    }
    text += "]";
  }
  size_t num_deferred = deferred_.size() - free_slots_.size();
  if (num_deferred > 0) text += " [" + std::to_string(num_deferred) + " acts deferred]";
  return text;
}

}  // namespace elastates
