#include "actor/port.h"

#include "actor/actor.h"
#include "actor/lane.h"

namespace elastates {

OutPort::OutPort(Actor* actor, std::string name, size_t num_registers, Fanout fanout, Credit credit)
    : actor_(actor),
      name_(std::move(name)),
      num_registers_(num_registers),
      waiting_for_(actor->waiting_for_),
      credit_(credit),
      fanout_(fanout) {
  assert(num_registers > 0);
  actor->outs_.push_back(this);
}

bool OutPort::TryBack() {
  if (!backed_ || top_is_backed_) return true;
  if (free_ == nullptr) return false;
  top_is_backed_ = Back(free_);
  return top_is_backed_;
}

void OutPort::Unback() {
  if (!top_is_backed_) return;
  top_is_backed_ = false;
  Reset(free_);
}

// Of a value that holds something, when the last consumer is done with it.
void OutPort::Empty(Register* reg) {
  Reset(reg);
  Unback();  // the backing belongs to the register on top, and that is about to be another
}

uint32_t OutPort::LeastLoaded() const {
  uint32_t best = 0;
  for (uint32_t edge = 1; edge < consumers_.size(); ++edge) {
    if (consumers_[edge].held < consumers_[best].held) best = edge;
  }
  return best;
}

void OutPort::PublishEord() {
  for (const Consumer& consumer : consumers_) {
    if (consumer.near != nullptr) {
      consumer.near->OnEord();
    } else {
      lane_->SendAway(consumer.actor->lane_, MessageKind::kEord, consumer.actor, nullptr, consumer.port);
    }
  }
}

InPort::InPort(Actor* actor, std::string name)
    : actor_(actor), name_(std::move(name)), index_(static_cast<uint32_t>(actor->ins_.size())) {
  actor->ins_.push_back(this);
}

void InPort::OnEord() {
  --open_producers_;
  actor_->input_ended_ = true;
  actor_->LookAgain();
}

}  // namespace elastates
