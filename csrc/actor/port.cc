#include "actor/port.h"

#include "actor/actor.h"
#include "actor/lane.h"

namespace elastates {

OutPort::OutPort(Actor* actor, std::string name, size_t num_registers, Fanout fanout, Credit credit)
    : actor_(actor), name_(std::move(name)), num_registers_(num_registers), fanout_(fanout), credit_(credit) {
  assert(num_registers > 0);
  free_.reserve(num_registers);
  actor->outs_.push_back(this);
}

Register* OutPort::TakeFree() {
  Register* reg = free_.back();
  free_.pop_back();
  top_is_backed_ = false;
  if (free_.empty() && credit_ == Credit::kRequired) ++actor_->waiting_for_;
  return reg;
}

bool OutPort::TryBack() {
  if (!backed_ || top_is_backed_) return true;
  if (free_.empty()) return false;
  top_is_backed_ = Back(free_.back());
  return top_is_backed_;
}

void OutPort::Unback() {
  if (!top_is_backed_) return;
  top_is_backed_ = false;
  Reset(free_.back());
}

void OutPort::Publish(Register* reg, Job* job, bool failed) {
  reg->job = job;
  reg->failed = failed;
  if (consumers_.empty()) return Free(reg);
  if (fanout_ == Fanout::kLeastLoaded) {
    reg->readers_left = 1;
    return SendTo(LeastLoaded(), reg);
  }
  reg->readers_left = static_cast<uint32_t>(consumers_.size());
  for (uint32_t edge = 0; edge < consumers_.size(); ++edge) SendTo(edge, reg);
}

void OutPort::SendTo(uint32_t edge, Register* reg) {
  Consumer& consumer = consumers_[edge];
  ++consumer.held;
  MessageKind kind = reg->failed ? MessageKind::kError : MessageKind::kReq;
  actor_->lane_->Send(kind, consumer.actor, reg, consumer.port, edge);
}

uint32_t OutPort::LeastLoaded() const {
  uint32_t best = 0;
  for (uint32_t edge = 1; edge < consumers_.size(); ++edge) {
    if (consumers_[edge].held < consumers_[best].held) best = edge;
  }
  return best;
}

void OutPort::OnAck(Register* reg, uint32_t edge) {
  --consumers_[edge].held;
  if (--reg->readers_left == 0) Free(reg);
}

void OutPort::Free(Register* reg) {
  if (resets_) Reset(reg);
  Unback();  // the backing belongs to the register on top, and that is about to be another
  if (free_.empty() && credit_ == Credit::kRequired) --actor_->waiting_for_;
  free_.push_back(reg);
}

InPort::InPort(Actor* actor, std::string name)
    : actor_(actor), name_(std::move(name)), index_(static_cast<uint32_t>(actor->ins_.size())) {
  actor->ins_.push_back(this);
}

}  // namespace elastates
