// Handshake: one socket until both ends have proven who they are; see greeting.h for what is said.
//
// Of the pool's thread alone. It reads no byte beyond the greetings, holds at most one of them, and ends by
// itself at its deadline: a stranger costs a socket and 2 KiB for a few seconds.
//
// Two members may dial each other at the same time. Then the one with the smaller id decides which of the
// links is taken: as acceptor before its Welcome, as dialer before its Confirm. The other takes what it is
// given.
#ifndef ELASTATES_COMM_LINKS_HANDSHAKE_H_
#define ELASTATES_COMM_LINKS_HANDSHAKE_H_

#include <memory>
#include <string>

#include "comm/links/event_loop.h"
#include "comm/links/greeting.h"
#include "comm/links/socket.h"

namespace elastates {

class Handshake : public EventLoop::Handler {
 public:
  enum class Role { kDialer, kAcceptor };

  // What both ends say of themselves, and what the outcome is.
  class Host {
   public:
    virtual ~Host() = default;
    virtual const std::string& secret() const = 0;
    // Completed by the handshake: nonce; for an acceptor also link, socket and to.
    virtual Greeting MakeGreeting() = 0;
    virtual int segment_fd() const = 0;

    // Acceptor: whether to go on with this dialer, who has proven nothing yet.
    virtual Refusal CheckHello(const Handshake& handshake) = 0;
    // Whether this link is the one to take; the peer has proven who it is.
    virtual Refusal Choose(const Handshake& handshake) = 0;
    // Both sides know that it is. The handshake's socket and descriptors may be taken.
    virtual void OnEstablished(Handshake* handshake) = 0;
    // The last call. `refusal`: of the acceptor, on both sides, if it came to that.
    virtual void OnFailed(Handshake* handshake, Refusal refusal, const std::string& why) = 0;
  };

  // Whom a dialer calls and for which socket.
  struct Target {
    Member member;
    std::string address;  // as it was dialled
    uint64_t link = 0;
    size_t socket = 0;
    int num_bulk_sockets = 0;
  };

  static std::unique_ptr<Handshake> Dial(EventLoop* loop, Host* host, Socket socket, bool is_local,
                                         Target target);
  static std::unique_ptr<Handshake> Accept(EventLoop* loop, Host* host, Socket socket, bool is_local);
  ~Handshake() override { Close(); }

  Status Start(double timeout_s);
  void OnReady(uint32_t events) override;
  void Close();  // without a further call to the host

  Role role() const { return role_; }
  bool is_local() const { return is_local_; }
  // The link they are about: the dialer's greeting, on both sides.
  const Greeting& hello() const { return hello_; }
  // Of the peer, once it has greeted.
  const Greeting& peer() const { return role_ == Role::kDialer ? answer_ : hello_; }
  const Credentials& credentials() const { return credentials_; }  // of a local peer
  const Target& target() const { return target_; }                 // of a dialer
  const std::string& peer_name() const { return peer_name_; }      // for messages; of an acceptor

  Socket TakeSocket();
  OwnedFd TakeSegment() { return std::move(segment_); }

 private:
  enum class State { kConnecting, kHello, kAnswer, kProof, kWelcome, kConfirm, kClosed };

  Handshake(EventLoop* loop, Host* host, Role role, Socket socket, bool is_local);
  bool IsConnected();
  bool Read();  // true: a whole greeting is there
  void Handle(const GreetingHeader& header, const std::string& body);
  void OnConnected();
  void OnHello(const std::string& body);
  void OnAnswer(const std::string& body);
  void OnProof(const std::string& body);
  void OnWelcome(const std::string& body);
  void Say(GreetingType type, const std::string& body, int fd, State next);
  void Refuse(Refusal refusal);
  void Establish();
  void Fail(const std::string& why, Refusal refusal = Refusal::kNone);

  EventLoop* const loop_;
  Host* const host_;
  const Role role_;
  const bool is_local_;
  Socket socket_;
  State state_;
  Target target_;
  std::string peer_name_;
  Greeting hello_, answer_;
  std::string hello_body_, answer_body_;  // as they were sent
  Credentials credentials_;
  OwnedFd segment_;
  std::string received_;  // of the greeting being read
  EventLoop::TimerId deadline_{};
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_HANDSHAKE_H_
