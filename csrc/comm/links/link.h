// Link: the sockets between this process and one peer, from their first to the loss of either.
//
// Of the pool's thread alone; owned by the pool. One socket for what is short or urgent, others for the
// slices of large messages.
#ifndef ELASTATES_COMM_LINKS_LINK_H_
#define ELASTATES_COMM_LINKS_LINK_H_

#include <memory>
#include <string>
#include <vector>

#include "comm/links/connection.h"
#include "comm/links/event_loop.h"
#include "comm/links/mailbox.h"
#include "comm/links/outbox.h"

namespace elastates {

class Link : public Connection::Owner {
 public:
  class Host {
   public:
    virtual ~Host() = default;
    virtual void OnControl(MemberId peer, const std::string& content) = 0;
    virtual void OnPeerReady(MemberId peer) = 0;  // the acceptor awaits the further sockets
    // No more can come. The link may be discarded then, not destroyed.
    virtual void OnLinkEnded(MemberId peer, const std::string& why) = 0;
  };

  struct Identity {
    MemberId peer = 0;
    uint64_t link = 0;  // as in the greetings
    bool is_local = false;
    int num_bulk_sockets = 0;
    std::string dialled_address;  // where the further sockets go to; empty for who was dialled
  };

  Link(EventLoop* loop, Mailbox* mailbox, Host* host, Identity identity);
  ~Link() override { Close(); }

  const Identity& identity() const { return identity_; }
  bool HasSocket(size_t index) const { return connections_[index] != nullptr; }
  bool HasAllSockets() const;
  Status AddSocket(size_t index, Socket socket);

  Outbox& outbox() { return outbox_; }
  void Flush();
  // Completes the sends that match; afterwards nothing here points to their bytes.
  void Complete(const Outbox::Matches& matches, const Status& why);
  // The peer is gone: takes in what it has sent before.
  void ReadLastWords();
  void Close();  // without a further call to the host

 private:
  void OnFrame(FrameType type, std::string content) override;
  Mailbox::IncomingPtr OnSliceBegin(const FrameHeader& header, std::string* why) override;
  void OnSliceEnd(const Mailbox::IncomingPtr& incoming, const FrameHeader& header) override;
  void OnBroken(Connection* connection, const std::string& why) override;
  bool IsAnyOpen() const;
  void End();

  EventLoop* const loop_;
  Mailbox* const mailbox_;
  Host* const host_;
  const Identity identity_;
  Outbox outbox_;
  std::vector<std::unique_ptr<Connection>> connections_;  // by index; null: not there yet
  bool said_goodbye_ = false;
  bool is_ending_ = false;  // one socket is broken; ends with the last one, or soon
  bool is_closed_ = false;
  std::string why_;  // the first breach
  EventLoop::TimerId end_{};
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_LINK_H_
