// What groups need of the links below them: addressed messages between any two members, and news of losses.
#ifndef ELASTATES_COMM_MESSENGER_H_
#define ELASTATES_COMM_MESSENGER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "comm/member.h"

namespace elastates {

// What a receive must name to get what a send named; between two members every address is used once.
struct MessageAddress {
  uint64_t group = 0;     // a hash of its name, equal on all members
  uint32_t epoch = 0;     // which membership of the group
  uint32_t tag = 0;       // part of an operation: ring step, block
  uint64_t sequence = 0;  // which operation of the group, in the order that is the same on all members
};

enum class Loss {
  kUnreachable,  // the link broke, and nobody knows why
  kDead,         // proven: the kernel or an agent has seen the process end
};

// Called once, on the messenger's thread: it must neither block nor call Cancel().
using MessageDone = std::function<void(Status)>;

class Messenger {
 public:
  virtual ~Messenger() = default;

  virtual const Member& self() const = 0;

  // Both only post, and never block. The bytes belong to the messenger until `done` is called; with an error
  // that names the peer if the link is lost (kPeerLost) or the epoch cancelled (kRevoked). A message that
  // arrives before its receive is kept. Lengths must agree: kInvalidArgument on the receiver else.
  // REQUIRES: there is a link to the peer, or has been: after its loss both fail at once.
  virtual void Send(MemberId to, const MessageAddress& address, const void* data, size_t size_bytes,
                    MessageDone done) = 0;
  virtual void Receive(MemberId from, const MessageAddress& address, void* data, size_t size_bytes,
                       MessageDone done) = 0;

  // Completes all posted with this group and an epoch <= `epoch` with `why` and drops what still arrives for
  // them. When it returns nobody touches their bytes any more. Not on the messenger's thread.
  virtual void Cancel(uint64_t group, uint32_t epoch, const Status& why) = 0;

  // A short message to be handled as it arrives, in the order of sending between any two members. Dropped if
  // the peer is lost. From any thread.
  virtual void SendControl(MemberId to, std::string content) = 0;

  // On the messenger's thread, one at a time; set before the first link is made. `proof` carries what the
  // lost one left for the others (its vote), empty if there is nothing. kDead may follow kUnreachable, each
  // once.
  struct Observer {
    std::function<void(MemberId from, const std::string& content)> on_control;
    std::function<void(MemberId peer, Loss loss, const std::string& why, const std::string& proof)> on_loss;
  };
  virtual void SetObserver(Observer observer) = 0;

  // Runs on the messenger's thread, not before `delay_s` seconds have gone.
  virtual void RunLater(double delay_s, std::function<void()> run) = 0;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_MESSENGER_H_
