// Connection: one socket of a link after its handshake, cut into frames both ways.
//
// Of the pool's thread alone; owned by its link. Reads straight into where a message belongs; writes several
// frames per call, and sleeps on EPOLLOUT only while the kernel takes no more.
#ifndef ELASTATES_COMM_LINKS_CONNECTION_H_
#define ELASTATES_COMM_LINKS_CONNECTION_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "comm/links/event_loop.h"
#include "comm/links/frame.h"
#include "comm/links/mailbox.h"
#include "comm/links/outbox.h"
#include "comm/links/socket.h"

namespace elastates {

class Connection : public EventLoop::Handler {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    // A frame without a message. `content` is the payload of a control frame.
    virtual void OnFrame(FrameType type, std::string content) = 0;
    // As Mailbox::Begin and End.
    virtual Mailbox::IncomingPtr OnSliceBegin(const FrameHeader& header, std::string* why) = 0;
    virtual void OnSliceEnd(const Mailbox::IncomingPtr& incoming, const FrameHeader& header) = 0;
    // The last call from this connection, which has closed its socket.
    virtual void OnBroken(Connection* connection, const std::string& why) = 0;
  };

  Connection(EventLoop* loop, Owner* owner, Outbox* outbox, size_t index, Socket socket);
  ~Connection() override { Close(); }

  Status Start();
  void OnReady(uint32_t events) override;

  // Writes what there is until the kernel takes no more; nothing while that is so already.
  void Flush() {
    if (!waits_for_room_) Write();
  }
  // Reads what has arrived, without limit: for the last words of a peer that is gone.
  void ReadAll();
  // Frames of these messages that have not begun are forgotten; of one that has begun the rest is copied, so
  // that afterwards nothing here points into the messages.
  void Release(const Outbox::Matches& matches);
  void Close();

  size_t index() const { return index_; }
  bool is_open() const { return static_cast<bool>(socket_); }

 private:
  // kShort: less than asked for, so there is probably no more for now.
  enum class Progress { kMore, kShort, kDrained, kBroken };

  Progress ReadSome();
  bool ConsumeBuffered();
  bool BeginFrame();
  void EndFrame();
  size_t TakePayload(const char* from, size_t available);
  char* PayloadPlace();
  size_t payload_left() const { return header_.length_bytes - payload_done_; }
  size_t buffered() const { return buffer_end_ - buffer_begin_; }

  void Write();
  bool WriteSome();
  void FillBatch();
  void CountSent(size_t size_bytes);
  void WaitForRoom(bool wait);
  void Break(const std::string& why);

  EventLoop* const loop_;
  Owner* const owner_;
  Outbox* const outbox_;
  const size_t index_;
  Socket socket_;

  // In.
  std::vector<char> buffer_;
  size_t buffer_begin_ = 0, buffer_end_ = 0;
  bool in_frame_ = false;  // header_ is read, its payload not to the end
  FrameHeader header_;
  size_t payload_done_ = 0;
  std::string control_;
  Mailbox::IncomingPtr incoming_;

  // Out.
  std::deque<Frame> batch_;  // on their way to the kernel, the first one in part
  bool waits_for_room_ = false;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_CONNECTION_H_
