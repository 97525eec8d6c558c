#include "comm/links/pool.h"

#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <future>
#include <utility>

#include "comm/links/random.h"

namespace elastates {
namespace {

constexpr size_t kMaxAddresses = 8;  // named in the member; a machine with more has them behind these
constexpr size_t kMinSecretBytes = 16;

Status Invalid(const std::string& what) { return Status(StatusCode::kInvalidArgument, what); }

Status Check(const LinkPoolOptions& options) {
  if (options.job.empty() || options.job.size() > kMaxJobBytes)
    return Invalid("job: expected 1 to 64 bytes, got " + std::to_string(options.job.size()));
  if (options.secret.size() < kMinSecretBytes)
    return Invalid("secret: expected at least 16 bytes, got " + std::to_string(options.secret.size()));
  if (!(options.failure_timeout_s > 0))
    return Invalid("failure_timeout_s: expected more than 0, got " +
                   std::to_string(options.failure_timeout_s));
  if (!(options.handshake_timeout_s > 0))
    return Invalid("handshake_timeout_s: expected more than 0, got " +
                   std::to_string(options.handshake_timeout_s));
  if (options.num_bulk_sockets < 1 || options.num_bulk_sockets > kMaxBulkSockets)
    return Invalid("num_bulk_sockets: expected 1 to 16, got " + std::to_string(options.num_bulk_sockets));
  return Status::Ok();
}

std::string HexOf(MemberId id) {
  char text[24];
  std::snprintf(text, sizeof(text), "%016" PRIx64, id);
  return text;
}

bool IsWildcard(const std::string& address) { return address == "0.0.0.0" || address == "::"; }

// The port of "10.0.0.7:4711" at each of this machine's addresses of the same family.
std::vector<std::string> Spread(const std::string& address, bool is_v6) {
  const std::string port = address.substr(address.rfind(':'));
  std::vector<std::string> spread;
  for (const std::string& host : AddressesOfThisMachine()) {
    const bool host_is_v6 = host.find(':') != std::string::npos;
    if (host_is_v6 == is_v6) spread.push_back((host_is_v6 ? "[" + host + "]" : host) + port);
  }
  return spread;
}

}  // namespace

std::string Describe(const Member& member) {
  std::string text = "member " + HexOf(member.id);
  if (member.host.empty()) return text;
  return text + " (process " + std::to_string(member.pid) + " on " +
         member.host.substr(0, member.host.find('/')) + ")";
}

Result<std::unique_ptr<LinkPool>> LinkPool::Start(LinkPoolOptions options) {
  if (Status status = Check(options); !status.ok()) return status.WithContext("starting the links");
  auto pool = std::make_unique<Pool>(std::move(options));
  if (Status status = pool->Open(); !status.ok()) return status.WithContext("starting the links");
  return std::unique_ptr<LinkPool>(std::move(pool));
}

Status Pool::Open() {
  self_.id = options_.id != 0 ? options_.id : RandomId();
  self_.host = options_.host.empty() ? ThisHost() : options_.host;
  self_.pid = static_cast<int>(getpid());
  if (Status status = loop_.Open(); !status.ok()) return status;
  if (Status status = ListenOnAll(); !status.ok()) return status;
  thread_ = NamedThread("elastates-links", [this] { Run(); });
  return Status::Ok();
}

Status Pool::ListenOnAll() {
  self_.local_address = "elastates." + HexOf(self_.id);
  Result<Socket> local = ListenLocal(self_.local_address);
  if (!local.ok()) return local.status();
  listening_.emplace_back(std::move(local).value(), true);
  return ListenOnTcp();
}

Status Pool::ListenOnTcp() {
  for (const std::string& address : options_.bind) {
    Result<Socket> socket = ListenTcp(address);
    if (!socket.ok()) return socket.status();
    Result<std::string> name = LocalAddress(socket.value());
    if (!name.ok()) return name.status();
    listening_.emplace_back(std::move(socket).value(), false);
    if (IsWildcard(address)) {
      for (std::string& spread : Spread(name.value(), address == "::"))
        self_.addresses.push_back(std::move(spread));
    } else {
      self_.addresses.push_back(name.value());
    }
  }
  if (self_.addresses.size() > kMaxAddresses) self_.addresses.resize(kMaxAddresses);
  if (Encode(self_).size() <= kMaxHandleBytes) return Status::Ok();
  return Invalid("bind: the addresses make a handle of more than " + std::to_string(kMaxHandleBytes) +
                 " bytes");
}

void Pool::Run() {
  Status why(StatusCode::kCancelled, "the links of this process are closed");
  try {
    loop_.Run([this] { FlushLinks(); });
  } catch (const std::exception& error) {
    why = Status(StatusCode::kInternal, std::string("the links' thread failed: ") + error.what());
  }
  Shutdown(why);
}

Pool::~Pool() {
  if (getpid() != self_.pid) {
    Abandon();
    return;
  }
  Close();
}

void Pool::Close() {
  if (getpid() != self_.pid) return;
  std::call_once(closed_, [this] {
    loop_.Post([this] { loop_.Stop(); });
    thread_.Join();
  });
}

// In a forked child: its copies of the sockets are closed already, the thread is not there, and what has
// their numbers now is not ours to close. So whatever would is left as it is.
void Pool::Abandon() {
  static auto* left = new std::vector<std::shared_ptr<void>>;
  left->push_back(std::make_shared<decltype(thread_)>(std::move(thread_)));
  left->push_back(std::make_shared<decltype(peers_)>(std::move(peers_)));
  left->push_back(std::make_shared<decltype(handshakes_)>(std::move(handshakes_)));
  left->push_back(std::make_shared<decltype(listeners_)>(std::move(listeners_)));
  left->push_back(std::make_shared<decltype(listening_)>(std::move(listening_)));
}

// Peers are told, as far as their sockets take it at once, that this is no accident.
void Pool::Shutdown(const Status& why) {
  ended_why_ = why;
  has_ended_.store(true);
  listeners_.clear();
  handshakes_.clear();
  for (auto& [id, peer] : peers_) {
    if (peer.link == nullptr) continue;
    peer.link->outbox().AddControl(FrameType::kGoodbye, "");
    peer.link->Flush();
    peer.link->Close();
    peer.link->Complete([](const Outgoing&) { return true; }, why);
  }
  mailbox_.CompleteAll(why);
  std::vector<ConnectCall> connects = std::move(connects_);
  for (const ConnectCall& call : connects) call.done(why);
  loop_.Close();
  peers_.clear();
}

void Pool::FlushLinks() {
  for (const MemberId id : unflushed_)
    if (Link* link = LinkTo(id)) link->Flush();
  unflushed_.clear();
}

Link* Pool::LinkTo(MemberId peer) {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? nullptr : found->second.link.get();
}

// What a post must fail with at once; ok: nothing.
Status Pool::CheckPost(MemberId id, const MessageAddress& address) {
  if (has_ended_.load()) return ended_why_;
  if (Status cancelled = mailbox_.CheckCancelled(address); !cancelled.ok()) return cancelled;
  const Peer* peer = Find(id);
  if (peer != nullptr && peer->is_lost) return peer->loss;
  if (peer != nullptr && peer->link != nullptr) return Status::Ok();
  return Invalid("there is no link to member " + HexOf(id) + ": Connect() comes first");
}

void Pool::Send(MemberId to, const MessageAddress& address, const void* data, size_t size_bytes,
                MessageDone done) {
  loop_.Post([=, done = std::move(done)]() mutable {
    if (Status refused = CheckPost(to, address); !refused.ok()) return done(refused);
    LinkTo(to)->outbox().AddMessage(address, data, size_bytes, std::move(done));
    unflushed_.insert(to);
  });
}

// What has come in full is given out even if its sender is lost by now: it was sent in time.
void Pool::Receive(MemberId from, const MessageAddress& address, void* data, size_t size_bytes,
                   MessageDone done) {
  loop_.Post([=, done = std::move(done)]() mutable {
    const Status refused = CheckPost(from, address);
    const bool is_there = refused.code() == StatusCode::kPeerLost && mailbox_.HasComplete(from, address);
    if (!refused.ok() && !is_there) return done(refused);
    mailbox_.Post(from, address, data, size_bytes, std::move(done));
  });
}

void Pool::Cancel(uint64_t group, uint32_t epoch, const Status& why) {
  std::promise<void> confirmed;
  loop_.Post([&] {
    const auto matches = [&](const Outgoing& message) {
      return message.address.group == group && message.address.epoch <= epoch;
    };
    if (!has_ended_.load()) {
      mailbox_.Cancel(group, epoch, why);
      for (auto& [id, peer] : peers_)
        if (peer.link != nullptr) peer.link->Complete(matches, why);
    }
    confirmed.set_value();
  });
  confirmed.get_future().wait();
}

void Pool::SendControl(MemberId to, std::string content) {
  loop_.Post([this, to, content = std::move(content)]() mutable {
    Link* link = has_ended_.load() ? nullptr : LinkTo(to);
    if (link == nullptr) return;
    link->outbox().AddControl(FrameType::kControl, std::move(content));
    unflushed_.insert(to);
  });
}

void Pool::SetObserver(Observer observer) {
  loop_.Post([this, observer = std::move(observer)]() mutable {
    if (has_ended_.load()) return;
    observer_ = std::move(observer);
    BeginAccepting();
  });
}

void Pool::RunLater(double delay_s, std::function<void()> run) {
  const auto when = EventLoop::Clock::now();
  loop_.Post([this, delay_s, when, run = std::move(run)]() mutable {
    if (!has_ended_.load()) loop_.RunAfter(delay_s, std::move(run), when);
  });
}

int Pool::PeerSegmentFd(MemberId peer) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = facts_.find(peer);
  return found == facts_.end() ? -1 : found->second.segment.get();
}

bool Pool::IsLocal(MemberId peer) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = facts_.find(peer);
  return found != facts_.end() && found->second.is_local;
}

uint32_t Pool::PeerEpoch(MemberId peer) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = facts_.find(peer);
  return found == facts_.end() ? 0 : found->second.epoch;
}

LinkPool::Refusals Pool::refusals() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return refusals_;
}

}  // namespace elastates
