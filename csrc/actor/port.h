// Ports and registers: where actors meet, and what is counted between them.
//
// A register is a slot for one value of T. It belongs to one out-port for ever and is either free, claimed by
// the act that is filling it, or under way with one reader count per consumer. free + claimed + under way ==
// num_registers, always: registers are the credits, and back-pressure is nothing but their absence.
//
//   class Doubler : public Actor {
//    public:
//     Doubler() : Actor("doubler") {}
//     In<int> in{this, "in"};
//     Out<int> out{this, "out", /*num_registers=*/2};
//
//    private:
//     Status Act() override {
//       out.Emit() = 2 * in.Get();
//       return Status::Ok();
//     }
//   };
//
// Ports are members of their actor and are touched by its lane's thread only, once the graph runs. A value
// may be read by its consumers' lanes between REQ and ACK; the messages order the accesses.
#ifndef ELASTATES_ACTOR_PORT_H_
#define ELASTATES_ACTOR_PORT_H_

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "actor/job.h"
#include "actor/message.h"

namespace elastates {

class InPort;
class Lane;
class OutPort;

struct Register {
  OutPort* home = nullptr;
  Job* job = nullptr;              // whose failure this register shares
  Register* below_free = nullptr;  // the next one of the port's free registers
  uint32_t readers_left = 0;       // touched by the home port's lane only
  bool failed = false;             // travels as kError: the value is whatever Actor::Drain() left in it
};

template <typename T>
struct RegisterOf : Register {
  T value{};
};

enum class Fanout : uint8_t {
  kEveryConsumer,  // each register is read by all consumers
  kLeastLoaded,    // each register goes to the one consumer that holds the fewest
};

enum class Credit : uint8_t {
  kRequired,  // the actor fires only when a register is free
  kLossy,     // the actor fires anyway; without a free register this output is skipped, and counted
};

class OutPort {
 public:
  OutPort(Actor* actor, std::string name, size_t num_registers, Fanout fanout, Credit credit);
  virtual ~OutPort() = default;
  OutPort(const OutPort&) = delete;
  OutPort& operator=(const OutPort&) = delete;

  const std::string& name() const { return name_; }
  size_t num_registers() const { return num_registers_; }
  size_t num_free() const { return num_free_; }
  size_t num_held_by(size_t consumer) const { return consumers_[consumer].held; }
  uint64_t num_skipped() const { return num_skipped_; }  // acts that found a lossy port without credit

 protected:
  Register* Claim() {  // REQUIRES: a register is free
    if (claimed_ == nullptr) claimed_ = TakeFree();
    return claimed_;
  }
  Register* TryClaim() { return claimed_ != nullptr || HasCredit() ? Claim() : nullptr; }
  bool HasCredit() const { return free_ != nullptr && (!backed_ || top_is_backed_); }

  virtual bool Back(Register* reg) = 0;   // called for backed ports only
  virtual void Reset(Register* reg) = 0;  // called where resets_ is set

  void PushFree(Register* reg) {
    reg->below_free = free_;
    free_ = reg;
    ++num_free_;
  }

  bool backed_ = false;
  bool resets_ = false;

 private:
  friend class Actor;
  friend class Graph;

  struct Consumer {
    Actor* actor;
    InPort* near;  // null if it lives on another lane
    uint32_t port;
    uint32_t held;
  };

  Register* TakeFree() {
    Register* reg = free_;
    free_ = reg->below_free;
    --num_free_;
    top_is_backed_ = false;
    if (free_ == nullptr && credit_ == Credit::kRequired) ++waiting_for_;
    return reg;
  }
  bool TryBack();
  void Unback();
  void Empty(Register* reg);
  void Publish(Register* reg, Job* job, bool failed);
  void FanOut(Register* reg);  // to none or several consumers
  void SendTo(Consumer* consumer, uint32_t edge, Register* reg);
  void PublishEord();
  uint32_t LeastLoaded() const;
  void OnAck(Register* reg, uint32_t edge);
  void Free(Register* reg);
  bool all_home() const { return num_free_ == num_registers_; }

  // Consumers on other lanes read these two to say where an ACK goes.
  Actor* const actor_;
  Lane* lane_ = nullptr;  // the actor's
  const std::string name_;
  const size_t num_registers_;

  // A cache line that they leave alone.
  alignas(64) Register* free_ = nullptr;  // last in, first out: the register that is warm in the cache
  size_t num_free_ = 0;
  Register* claimed_ = nullptr;        // by the act that is running
  Consumer* sole_consumer_ = nullptr;  // set if there is exactly one
  std::vector<Consumer> consumers_;
  uint32_t& waiting_for_;  // the actor's
  const Credit credit_;
  const Fanout fanout_;
  bool top_is_backed_ = false;  // free_ has its backing already
  uint64_t num_skipped_ = 0;
};

class InPort {
 public:
  InPort(Actor* actor, std::string name);
  InPort(const InPort&) = delete;
  InPort& operator=(const InPort&) = delete;

  const std::string& name() const { return name_; }

 protected:
  Register* front() const { return ready_.Front().reg; }  // REQUIRES: in an act

 private:
  friend class Actor;
  friend class Graph;
  friend class OutPort;

  struct Entry {  // whole words, as in Message
    Register* reg;
    uint64_t edge;
  };

  void OnReq(Register* reg, uint64_t edge);
  void OnEord();
  void DropFront();
  bool ended() const { return open_producers_ == 0 && ready_.empty(); }

  Actor* const actor_;
  FixedRing<Entry> ready_;  // capacity: the credits of all producers
  const std::string name_;
  const uint32_t index_;
  size_t capacity_ = 0;
  uint32_t open_producers_ = 0;
  std::vector<std::string> producer_names_;
};

// An empty T makes a control register: it orders side effects and carries nothing.
struct Nothing {};

template <typename T>
class Out : public OutPort {
 public:
  Out(Actor* actor, std::string name, size_t num_registers, Fanout fanout = Fanout::kEveryConsumer,
      Credit credit = Credit::kRequired)
      : OutPort(actor, std::move(name), num_registers, fanout, credit),
        registers_(std::make_unique<Slot[]>(num_registers)) {
    resets_ = !std::is_trivially_destructible_v<T>;
    for (size_t i = 0; i < num_registers; ++i) {
      registers_[i].home = this;
      PushFree(&registers_[i]);
    }
  }

  // The value this act sends to the port's consumers when it has succeeded; the same one however often it is
  // asked for. An act that does not ask sends nothing here. REQUIRES: in an act; the port is not lossy.
  T& Emit() { return static_cast<Slot*>(Claim())->value; }
  // For lossy ports: null if there is no credit.
  T* TryEmit() {
    Register* reg = TryClaim();
    return reg != nullptr ? &static_cast<Slot*>(reg)->value : nullptr;
  }

  // A register is free only once `acquire` has put into it what it stands for (a lease on an arena block),
  // just before an act; the value is destroyed when the last consumer is done with it. Whatever frees such
  // things elsewhere must call Actor::Wake(). REQUIRES: before Graph::Start().
  void SetBacking(std::function<bool(T*)> acquire) {
    acquire_ = std::move(acquire);
    backed_ = resets_ = true;
  }

 private:
  using Slot = RegisterOf<T>;
  bool Back(Register* reg) override { return acquire_(&static_cast<Slot*>(reg)->value); }
  void Reset(Register* reg) override { static_cast<Slot*>(reg)->value = T{}; }

  std::unique_ptr<Slot[]> registers_;
  std::function<bool(T*)> acquire_;
};

template <typename T>
class In : public InPort {
 public:
  using InPort::InPort;
  // The oldest register that is ready. REQUIRES: in an act.
  const T& Get() const { return static_cast<const RegisterOf<T>*>(front())->value; }
};

}  // namespace elastates

#endif  // ELASTATES_ACTOR_PORT_H_
