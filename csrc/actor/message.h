// Message: what actors tell each other, and the fixed rings that messages wait in.
//
// Values. Every register-consumer pair has at most one message under way (REQ one way, ACK the other), so the
// number of messages in a graph is bounded by its credits; rings are sized for that bound once and can
// neither overflow nor grow.
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

// A ring of fixed capacity. Not thread-safe.
template <typename T>
class FixedRing {
 public:
  void Reserve(size_t capacity) {
    size_t slots = 1;
    while (slots < capacity) slots *= 2;
    slots_ = std::make_unique<T[]>(slots);
    mask_ = slots - 1;
  }
  bool empty() const { return head_ == tail_; }
  size_t size() const { return tail_ - head_; }
  template <typename... Args>
  void Emplace(Args... args) {  // REQUIRES: size() < capacity
    assert(size() <= mask_);
    new (&slots_[tail_++ & mask_]) T{args...};
  }
  const T& Front() const { return slots_[head_ & mask_]; }  // REQUIRES: !empty(); stays until DropFront()
  void DropFront() { ++head_; }                             // REQUIRES: !empty()

 private:
  std::unique_ptr<T[]> slots_;
  size_t mask_ = 0;
  size_t head_ = 0;
  size_t tail_ = 0;
};

}  // namespace elastates

#endif  // ELASTATES_ACTOR_MESSAGE_H_
