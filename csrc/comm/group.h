// A group: a member list and an epoch over the links, and the operations its members do together, in order.
#ifndef ELASTATES_COMM_GROUP_H_
#define ELASTATES_COMM_GROUP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/messenger.h"

namespace elastates {

class LocalCollectives;

struct View {
  uint32_t epoch = 0;
  std::vector<Member> members;  // in the order of their ranks
};

// An operation in progress on one member: what a collective algorithm may use. It runs on the group's own
// thread; everything that waits sleeps, and fails at once when the group is revoked.
class Operation {
 public:
  virtual ~Operation() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const View& view() const = 0;
  virtual uint64_t sequence() const = 0;

  // Post to or from a rank; `tag` tells the messages of one operation apart. REQUIRES: Wait() before the
  // bytes are used again and before the operation ends.
  virtual void Send(int to, uint32_t tag, const void* data, size_t size_bytes) = 0;
  virtual void Receive(int from, uint32_t tag, void* data, size_t size_bytes) = 0;
  // Until all posted since the last Wait() is done; the first error.
  virtual Status Wait() = 0;
  // Until the first `count` posted since the last Wait() are done, while later ones may be under way: what a
  // pipeline needs. After an error nothing posted is under way any more.
  virtual Status WaitFirst(size_t count) = 0;

  // For bodies that wait for something else than messages: the reason once the operation may go on no longer,
  // because the group is revoked, closed or its time is over; and a call, from any thread and at most once
  // and not after the body, when the group stops. REQUIRES: `wake` does not block; set once per operation.
  virtual Status Check() = 0;
  virtual void WakeOnStop(std::function<void()> wake) = 0;
  // kPeerLost once the links have lost a rank that had said farewell before: that stops only who needs it.
  virtual Status CheckPeer(int) { return Status::Ok(); }

  // What does collectives among members of one host through memory that they share; null on all members of
  // the group if they do not.
  virtual LocalCollectives* local() { return nullptr; }

  // At least so many bytes, 64-byte aligned, kept between operations of the group; grows as asked. Asking for
  // more may move it: what it held is gone then.
  virtual char* Scratch(size_t size_bytes) = 0;
};

class Group {
 public:
  using Body = std::function<Status(Operation&)>;
  using Done = std::function<void(Status)>;

  virtual ~Group() = default;

  virtual std::shared_ptr<const View> view() const = 0;  // never null; the newest that was installed
  virtual int rank() const = 0;

  // Queues an operation; all members queue the same ones in the same order. `done` is called once, on the
  // group's thread, or at once with kRevoked while the group is revoked. `timeout_s` counts from its start.
  // One that fails revokes the group: its members no longer agree on what comes next.
  virtual void Run(Body body, double timeout_s, Done done) = 0;

  // Fails what is queued and running with kRevoked and this reason, and everything new until Install(). When
  // it returns no operation touches its tensors any more. Idempotent; from any thread but the messenger's.
  virtual void Revoke(const std::string& why) = 0;
  // The same without waiting; for the messenger's thread.
  virtual void RevokeSoon(const std::string& why) = 0;

  // Takes up a newer view over links that are there already; sequence numbers begin anew. Old messages are
  // dropped. kInvalidArgument if it is no newer or this process is not in it.
  virtual Status Install(View view) = 0;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_GROUP_H_
