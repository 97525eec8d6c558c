// Message: what actors on different lanes tell each other, and the fixed rings that things wait in.
//
// Values. Every register-consumer pair has at most one message under way (REQ one way, ACK the other), so the
// number of messages in a graph is bounded by its credits; inboxes, outboxes and rings are sized for their
// bounds once and neither overflow nor grow. On one lane the same is said by plain calls.
#ifndef ELASTATES_ACTOR_MESSAGE_H_
#define ELASTATES_ACTOR_MESSAGE_H_

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace elastates {

class Actor;
struct Register;

enum class MessageKind : uint8_t {
  kReq,    // producer -> consumer: this register is ready for you
  kError,  // the same, but there is nothing in it: the act that should have filled it failed or was skipped
  kAck,    // consumer -> producer: I do not need this register any more
  kEord,   // producer -> consumer: end of register data, nothing comes after this
  kDone,   // any thread -> actor: an act you deferred is complete
  kWake,   // any thread -> actor: look again whether you can fire
  kDescribe,  // any thread -> actor: say what you wait for
};

// Three whole words, written and read one by one. Narrower fields, or a copy of the struct, make the compiler
// load what was just stored with another width, which stalls the CPU for longer than all the rest of a hop
// takes (measured: 2x).
struct Message {
  Message() = default;
  Message(MessageKind kind, Actor* receiver, Register* subject = nullptr, uint32_t port = 0,
          uint32_t edge = 0)
      : to(receiver), reg(subject), tag(uint64_t{edge} << 32 | port << 8 | static_cast<uint64_t>(kind)) {}

  MessageKind kind() const { return static_cast<MessageKind>(tag & 0xff); }
  uint32_t port() const {
    return static_cast<uint32_t>(tag) >> 8;
  }  // the receiver's in-port; for kDone its slot
  uint32_t edge() const {
    return static_cast<uint32_t>(tag >> 32);
  }  // which consumer of the register's home port

  Actor* to = nullptr;
  Register* reg = nullptr;  // kReq, kError, kAck
  uint64_t tag = 0;
};

// A ring of fixed capacity. Not thread-safe. One slot always stays free, so that two pointers say all: the
// front is one load away, where indices and a mask would take four instructions.
template <typename T>
class FixedRing {
 public:
  void Reserve(size_t capacity) {  // REQUIRES: empty()
    slots_ = std::make_unique<T[]>(capacity + 1);
    end_ = slots_.get() + capacity + 1;
    head_ = tail_ = slots_.get();
  }
  bool empty() const { return head_ == tail_; }
  template <typename... Args>
  void Emplace(Args... args) {  // REQUIRES: fewer than `capacity` in it
    new (tail_) T{args...};
    tail_ = Next(tail_);
    assert(!empty());
  }
  const T& Front() const { return *head_; }  // REQUIRES: !empty(); stays until DropFront()
  void DropFront() { head_ = Next(head_); }  // REQUIRES: !empty()

 private:
  T* Next(T* slot) const { return slot + 1 == end_ ? slots_.get() : slot + 1; }

  T* head_ = nullptr;
  T* tail_ = nullptr;
  T* end_ = nullptr;
  std::unique_ptr<T[]> slots_;
};

}  // namespace elastates

#endif  // ELASTATES_ACTOR_MESSAGE_H_
