// Actor: a piece of work that fires whenever it can.
//
// It can fire when every in-port has a ready register and every out-port a free one. Then Act() runs on the
// actor's lane, what it emitted goes to the consumers (REQ), and what it read goes back to the producers
// (ACK). An actor is never on two threads at once, so its members need no lock. Owned by its Graph.
//
// An act may be *asynchronous*: Defer() returns at once a handle with which any thread completes the act
// later; outputs are sent and inputs returned only then. Several may be under way, and complete in any order.
//
// When an act fails, or its job has failed already, Drain() runs in its place, and what that emits travels as
// ERROR. When one in-port has ended (EORD from all its producers) and is empty, the actor ends: what is left
// on other in-ports is returned unread, and EORD goes on to the consumers.
#ifndef ELASTATES_ACTOR_ACTOR_H_
#define ELASTATES_ACTOR_ACTOR_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "actor/job.h"
#include "actor/message.h"
#include "actor/port.h"
#include "base/status.h"

namespace elastates {

class Graph;
class Lane;

// How an act that was deferred is completed. A value; Complete() is called exactly once, from any thread.
class Completion {
 public:
  void Complete(Status status) const;

 private:
  friend class Actor;
  Completion(Actor* actor, uint16_t slot) : actor_(actor), slot_(slot) {}
  Actor* actor_;
  uint16_t slot_;
};

// What a source, an actor without in-ports, has to offer.
enum class Supply {
  kReady,  // fire me
  kIdle,   // nothing now; somebody will call Wake(). While the graph is closing, the source ends
  kEnd,    // nothing any more
};

class Actor {
 public:
  virtual ~Actor() = default;
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;

  const std::string& name() const { return name_; }

  // Has the actor look again whether it can fire. Any thread, any time after Graph::Start(); cheap and
  // coalesced.
  void Wake();

 protected:
  // max_deferred: how many of its acts may be deferred and not yet complete.
  explicit Actor(std::string name, uint16_t max_deferred = 0);

  // Reads the front of the in-ports, emits to the out-ports.
  virtual Status Act() = 0;
  // In place of an act that failed or must not happen. Default: an ERROR on every out-port. Actors that emit
  // less than once per act say here what a failure means for their count. In-ports may be read if their
  // producers fill them there.
  virtual void Drain();
  // Sources only: asked before each act.
  virtual Supply Poll() { return Supply::kEnd; }
  // The last thing that runs, after every act is complete.
  virtual void OnEnd() {}

  // For Act(): it completes when the handle says so. REQUIRES: the act has emitted what it will emit, reads
  // its inputs no more after it returns except through copies, and returns Ok.
  Completion Defer();
  // For a source's Act(), before anything that can fail: what it emits belongs to `job`. Default: the
  // graph's.
  void BeginJob(Job* job) { act_job_ = job; }

  Graph& graph() const { return *graph_; }
  Lane& lane() const { return *lane_; }

 private:
  friend class Completion;
  friend class Graph;
  friend class InPort;
  friend class Lane;
  friend class OutPort;

  struct Output {
    OutPort* port;
    Register* reg;
  };
  struct DeferredAct {
    std::vector<InPort::Entry> inputs;
    std::vector<Output> outputs;
    Job* job = nullptr;
    Status status;  // written by the completing thread
  };

  // Everything below runs on the lane.
  void Handle(const Message& message);
  void HandleRare(const Message& message);
  void CompleteDeferred(uint16_t slot);
  void LookAgain();            // after every change that may let it fire or end
  int TakeTurn(int max_acts);  // returns how often it fired
  bool CanFire() { return waiting_for_ == 0 && (!has_conditions_ || ConditionsHold()); }
  bool ConditionsHold();
  void Fire();
  bool SettleSpecial();
  bool ActAndDrain();
  Status RunAct();
  bool InputsFailed();
  void FailJobWith(const Register& input);
  void FailJob(const Status& status);
  void FinishAct(bool failed);
  void StashAct();
  void ReturnInput(const InPort::Entry& entry);
  void ReturnUnread();
  void EndIfDrained();
  void End();
  void RetireIfHome();
  std::string Describe() const;

  // How many things there are without which it cannot fire: empty in-ports, out-ports without credit, all
  // slots deferred. An actor that has ended waits for one more, for ever.
  uint32_t waiting_for_ = 0;
  bool has_turn_ = false;        // it waits for its turn among the lane's actors
  bool has_conditions_ = false;  // it is a source or has a backed port
  bool is_special_ = false;      // has a backed or lossy out-port, or may defer
  bool input_ended_ = false;
  bool ended_ = false;
  bool retired_ = false;  // ended, and every register is home
  int slot_of_act_ = -1;  // set by Defer() for Fire()
  Job* act_job_ = nullptr;
  Lane* lane_ = nullptr;
  std::vector<InPort*> ins_;
  std::vector<OutPort*> outs_;

  Graph* graph_ = nullptr;
  const std::string name_;
  std::vector<DeferredAct> deferred_;
  std::vector<uint16_t> free_slots_;
  std::atomic<bool> wake_pending_{false};
};

}  // namespace elastates

#endif  // ELASTATES_ACTOR_ACTOR_H_
