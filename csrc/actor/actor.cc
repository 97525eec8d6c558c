#include "actor/actor.h"

#include "actor/graph.h"
#include "actor/lane.h"

namespace elastates {

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

void Actor::HandleRare(const Message& message) {
  switch (message.kind()) {
    case MessageKind::kEord:
      ins_[message.port()]->OnEord();
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
    case MessageKind::kReq:
    case MessageKind::kError:
    case MessageKind::kAck:
      assert(!"handled by Handle()");
  }
  LookAgain();
}

bool Actor::ConditionsHold() {
  if (ins_.empty()) {
    const bool closing = graph_->closing();  // before Poll(), which then sees all that was put before Close()
    const Supply supply = graph_->job().failed() ? Supply::kEnd : Poll();
    if (supply == Supply::kEnd || (supply == Supply::kIdle && closing)) input_ended_ = true;
    if (supply != Supply::kReady) return false;
  }
  if (!is_special_) return true;
  for (OutPort* out : outs_) {
    if (!out->TryBack() && out->credit_ == Credit::kRequired) return false;
  }
  return true;
}

// Credit that the act could not have is counted, backing that it did not use is let go. Returns whether the
// act was deferred.
bool Actor::SettleSpecial() {
  for (OutPort* out : outs_) {
    if (out->credit_ == Credit::kLossy && out->claimed_ == nullptr && !out->HasCredit()) ++out->num_skipped_;
    if (out->backed_) out->Unback();
  }
  if (slot_of_act_ < 0) return false;
  StashAct();
  return true;
}

// An input that failed in another job fails this one: its data are missing here too.
void Actor::FailJobWith(const Register& input) {
  if (input.job != act_job_) FailJob(input.job->status());
}

void Actor::FailJob(const Status& status) {
  bool first = act_job_->Fail(name_, status);
  if (first && act_job_ == &graph_->job()) graph_->WakeSources();
}

void Actor::Drain() {
  for (OutPort* out : outs_) out->TryClaim();
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
    in->DropFront();
  }
}

void Actor::EndIfDrained() {
  bool ended = ended_ || ins_.empty();
  for (InPort* in : ins_) ended = ended || in->ended();
  if (!ended || free_slots_.size() != deferred_.size()) return;
  if (!ended_) End();
  ReturnUnread();
  RetireIfHome();
}

void Actor::End() {
  ended_ = true;
  ++waiting_for_;
  OnEnd();
  for (OutPort* out : outs_) out->PublishEord();
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
    if (out->num_free_ > 0 && !ended_) continue;
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
