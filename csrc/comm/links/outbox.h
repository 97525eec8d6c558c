// Outbox: what waits to be sent to one peer, and which frame each of its sockets gets next.
//
// Of the pool's thread alone. Control messages go first, over the first socket; small messages share it;
// large ones are cut into slices, which go to whichever further socket is ready for one.
#ifndef ELASTATES_COMM_LINKS_OUTBOX_H_
#define ELASTATES_COMM_LINKS_OUTBOX_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>

#include "comm/links/frame.h"
#include "comm/messenger.h"

namespace elastates {

// More than this does not travel on the first socket: about 20 us of a fast network.
constexpr size_t kSmallMessageBytes = size_t{64} << 10;

struct Outgoing {
  MessageAddress address;
  const char* data = nullptr;
  size_t size_bytes = 0;
  size_t begun_bytes = 0;   // handed out in frames
  size_t unsent_bytes = 0;  // not yet taken by the kernel
  MessageDone done;         // null once called
};

// A header and its payload, of which `sent_bytes` have left.
struct Frame {
  std::array<char, kFrameHeaderBytes> header;
  const char* payload = nullptr;
  size_t payload_bytes = 0;
  size_t sent_bytes = 0;
  std::string owned;                  // the payload, where no message lends it
  std::shared_ptr<Outgoing> message;  // whose slice it is; null: of none

  size_t size_bytes() const { return header.size() + payload_bytes; }
};

class Outbox {
 public:
  using OutgoingPtr = std::shared_ptr<Outgoing>;

  void AddControl(FrameType type, std::string content);
  void AddMessage(const MessageAddress& address, const void* data, size_t size_bytes, MessageDone done);

  // The next frame for a socket (0: the first); false: there is none.
  bool Next(size_t socket, Frame* frame);
  bool HasBulk() const { return !bulk_.empty(); }
  // So many bytes of the frame have been taken by the kernel; completes the message with its last one.
  void Sent(Frame* frame, size_t size_bytes);

  using Matches = std::function<bool(const Outgoing&)>;
  // Completes the messages with `why`. Frames of theirs that sockets hold must be dealt with before.
  void Complete(const Matches& matches, const Status& why);

 private:
  void FillSlice(const OutgoingPtr& message, Frame* frame);
  bool NextOf(std::deque<OutgoingPtr>* queue, Frame* frame);

  std::deque<std::pair<FrameType, std::string>> control_;
  std::deque<OutgoingPtr> small_, bulk_;        // not yet handed out in full
  std::unordered_set<OutgoingPtr> unfinished_;  // not yet completed, in a queue or not
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_OUTBOX_H_
