#include "comm/links/handshake.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "comm/links/random.h"

namespace elastates {
namespace {

std::string AsText(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

bool Equals(const std::string& said, const Digest& expected) {
  Digest digest;
  if (said.size() != digest.size()) return false;
  std::copy(said.begin(), said.end(), digest.begin());
  return EqualInConstantTime(digest, expected);
}

}  // namespace

Handshake::Handshake(EventLoop* loop, Host* host, Role role, Socket socket, bool is_local)
    : loop_(loop),
      host_(host),
      role_(role),
      is_local_(is_local),
      socket_(std::move(socket)),
      state_(role == Role::kDialer ? State::kConnecting : State::kHello) {}

std::unique_ptr<Handshake> Handshake::Dial(EventLoop* loop, Host* host, Socket socket, bool is_local,
                                           Target target) {
  std::unique_ptr<Handshake> made(new Handshake(loop, host, Role::kDialer, std::move(socket), is_local));
  made->target_ = std::move(target);
  return made;
}

std::unique_ptr<Handshake> Handshake::Accept(EventLoop* loop, Host* host, Socket socket, bool is_local) {
  return std::unique_ptr<Handshake>(new Handshake(loop, host, Role::kAcceptor, std::move(socket), is_local));
}

Status Handshake::Start(double timeout_s) {
  if (role_ == Role::kAcceptor) peer_name_ = PeerName(socket_);
  if (is_local_ && role_ == Role::kAcceptor) {
    Result<Credentials> credentials = PeerCredentials(socket_);
    if (!credentials.ok()) return credentials.status();
    credentials_ = credentials.value();
  }
  deadline_ = loop_->RunAfter(timeout_s, [this] {
    Fail(state_ == State::kConnecting ? "it could not be reached in time" : Describe(Refusal::kTooSlow),
         Refusal::kTooSlow);
  });
  return loop_->Watch(socket_.get(), role_ == Role::kDialer ? EPOLLOUT : EPOLLIN, this);
}

void Handshake::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  loop_->Drop(deadline_);
  if (!socket_) return;
  loop_->Unwatch(socket_.get(), this);
  socket_.Close();
}

Socket Handshake::TakeSocket() {
  loop_->Unwatch(socket_.get(), this);
  Socket taken = std::move(socket_);
  Close();
  return taken;
}

void Handshake::Fail(const std::string& why, Refusal refusal) {
  if (state_ == State::kClosed) return;
  Close();
  host_->OnFailed(this, refusal, why);
}

void Handshake::OnReady(uint32_t) {
  if (state_ == State::kConnecting) return OnConnected();
  while (state_ != State::kClosed && Read()) {
    GreetingHeader header;
    std::string why;
    const std::string greeting = std::move(received_);
    received_.clear();
    if (!DecodeGreetingHeader(greeting.data(), &header, &why)) return Fail(why, Refusal::kMalformed);
    Handle(header, greeting.substr(kGreetingHeaderBytes));
  }
}

// Asks for the header, then for just as much as it announces: what follows the last greeting stays in the
// socket for the connection.
bool Handshake::Read() {
  while (true) {
    size_t wanted = kGreetingHeaderBytes;
    if (received_.size() >= kGreetingHeaderBytes) {
      GreetingHeader header;
      std::string why;
      if (!DecodeGreetingHeader(received_.data(), &header, &why))
        return Fail(why, Refusal::kMalformed), false;
      wanted += header.body_bytes;
    }
    if (received_.size() == wanted) return true;
    char buffer[kMaxGreetingBodyBytes];
    const size_t room = std::min(wanted - received_.size(), sizeof(buffer));
    OwnedFd passed;
    iovec part{buffer, room};
    const ssize_t result =
        is_local_ ? ReceiveWithFd(socket_, buffer, room, &passed) : Receive(socket_, &part, 1);
    if (result == -EINTR) continue;
    if (result == -EAGAIN) return false;
    if (result < 0) return Fail(std::strerror(static_cast<int>(-result))), false;
    if (result == 0) return Fail("it closed the connection"), false;
    if (passed) segment_ = std::move(passed);
    received_.append(buffer, static_cast<size_t>(result));
  }
}

void Handshake::Handle(const GreetingHeader& header, const std::string& body) {
  if (header.type == GreetingType::kRefuse && role_ == Role::kDialer) {
    const Refusal refusal = body.empty() ? Refusal::kMalformed : static_cast<Refusal>(body[0]);
    return Fail(std::string("it refused: ") + Describe(refusal), refusal);
  }
  if (header.type == GreetingType::kHello && state_ == State::kHello) return OnHello(body);
  if (header.type == GreetingType::kAnswer && state_ == State::kAnswer) return OnAnswer(body);
  if (header.type == GreetingType::kProof && state_ == State::kProof) return OnProof(body);
  if (header.type == GreetingType::kWelcome && state_ == State::kWelcome) return OnWelcome(body);
  if (header.type == GreetingType::kConfirm && state_ == State::kConfirm) return Establish();
  Fail("it sent a greeting out of turn", Refusal::kMalformed);
}

// A few hundred bytes into an empty socket: less than all is as good as an error.
void Handshake::Say(GreetingType type, const std::string& body, int fd, State next) {
  const std::string greeting = EncodeGreeting(type, body);
  const ssize_t sent = SendWithFd(socket_, greeting, fd);
  if (sent != static_cast<ssize_t>(greeting.size()))
    return Fail(sent < 0 ? std::strerror(static_cast<int>(-sent)) : "it takes nothing");
  state_ = next;
}

void Handshake::Refuse(Refusal refusal) {
  const std::string greeting =
      EncodeGreeting(GreetingType::kRefuse, std::string(1, static_cast<char>(refusal)));
  SendWithFd(socket_, greeting, -1);  // as a courtesy: it is sent away whether or not it hears why
  Fail(Describe(refusal), refusal);
}

// Dialer ----------------------------------------------------------------------------------------------------

void Handshake::OnConnected() {
  if (const int error = ConnectionError(socket_); error != 0) return Fail(std::strerror(error));
  if (is_local_) {
    Result<Credentials> credentials = PeerCredentials(socket_);
    if (!credentials.ok()) return Fail(credentials.status().message());
    credentials_ = credentials.value();
    if (credentials_.pid != target_.member.pid || credentials_.uid != geteuid())
      return Fail(Describe(Refusal::kWrongPid));
  }
  if (Status status = loop_->Rewatch(socket_.get(), EPOLLIN, this); !status.ok())
    return Fail(status.message());
  hello_ = host_->MakeGreeting();
  hello_.to = target_.member.id;
  hello_.link = target_.link;
  hello_.socket = static_cast<uint8_t>(target_.socket);
  hello_.num_bulk_sockets = static_cast<uint8_t>(target_.num_bulk_sockets);
  FillRandom(hello_.nonce.data(), hello_.nonce.size());
  hello_body_ = EncodeBody(hello_);
  Say(GreetingType::kHello, hello_body_, -1, State::kAnswer);
}

void Handshake::OnAnswer(const std::string& body) {
  Result<Greeting> answer = DecodeBody(body);
  if (!answer.ok()) return Fail(answer.status().message());
  answer_ = std::move(answer).value();
  answer_body_ = body;
  if (answer_.job != hello_.job) return Fail(Describe(Refusal::kWrongJob));
  if (answer_.member.id != target_.member.id) return Fail(Describe(Refusal::kWrongMember));
  Say(GreetingType::kProof, AsText(DialerProof(host_->secret(), hello_body_, answer_body_)), -1,
      State::kWelcome);
}

void Handshake::OnWelcome(const std::string& body) {
  if (!Equals(body, AcceptorProof(host_->secret(), hello_body_, answer_body_)))
    return Fail(Describe(Refusal::kWrongSecret));
  if (const Refusal refusal = host_->Choose(*this); refusal != Refusal::kNone)
    return Fail(Describe(refusal), refusal);
  const bool passes_segment = is_local_ && target_.socket == 0;
  Say(GreetingType::kConfirm, "", passes_segment ? host_->segment_fd() : -1, State::kConfirm);
  if (state_ == State::kConfirm) Establish();
}

// Acceptor --------------------------------------------------------------------------------------------------

void Handshake::OnHello(const std::string& body) {
  Result<Greeting> hello = DecodeBody(body);
  if (!hello.ok()) return Refuse(Refusal::kMalformed);
  hello_ = std::move(hello).value();
  hello_body_ = body;
  answer_ = host_->MakeGreeting();
  if (hello_.job != answer_.job) return Refuse(Refusal::kWrongJob);
  if (hello_.to != answer_.member.id) return Refuse(Refusal::kWrongMember);
  if (is_local_ && (credentials_.pid != hello_.member.pid || credentials_.uid != geteuid()))
    return Refuse(Refusal::kWrongPid);
  if (const Refusal refusal = host_->CheckHello(*this); refusal != Refusal::kNone) return Refuse(refusal);
  answer_.to = hello_.member.id;
  answer_.link = hello_.link;
  answer_.socket = hello_.socket;
  answer_.num_bulk_sockets = hello_.num_bulk_sockets;
  FillRandom(answer_.nonce.data(), answer_.nonce.size());
  answer_body_ = EncodeBody(answer_);
  Say(GreetingType::kAnswer, answer_body_, -1, State::kProof);
}

void Handshake::OnProof(const std::string& body) {
  if (!Equals(body, DialerProof(host_->secret(), hello_body_, answer_body_)))
    return Refuse(Refusal::kWrongSecret);
  if (const Refusal refusal = host_->Choose(*this); refusal != Refusal::kNone) return Refuse(refusal);
  const bool passes_segment = is_local_ && hello_.socket == 0;
  Say(GreetingType::kWelcome, AsText(AcceptorProof(host_->secret(), hello_body_, answer_body_)),
      passes_segment ? host_->segment_fd() : -1, State::kConfirm);
}

void Handshake::Establish() {
  if (peer().has_segment && is_local_ && hello_.socket == 0 && !segment_)
    return Fail("it announced a segment and sent none");
  loop_->Drop(deadline_);
  host_->OnEstablished(this);
}

}  // namespace elastates
