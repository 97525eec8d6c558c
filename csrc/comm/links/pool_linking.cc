// How links come about: dialling, accepting, and deciding between two that meet.
#include <algorithm>
#include <future>
#include <stdexcept>
#include <utility>

#include "comm/links/pool.h"
#include "comm/links/process.h"
#include "comm/links/random.h"

namespace elastates {
namespace {

// Who has the larger id leaves the other so much time to dial, so that they rarely dial each other at once.
constexpr double kHeadStart_s = 0.05;
constexpr double kBetweenDials_s = 0.1;
constexpr int kMaxRetries = 5;
constexpr size_t kMaxStrangers = 128;  // accepted sockets that have proven nothing; about 4 KiB each
constexpr size_t kMaxRefusalsKept = 8;

bool IsOfStranger(Refusal refusal, const Handshake& handshake) {
  switch (refusal) {
    case Refusal::kNone:
      return handshake.peer().member.id == 0;  // left without a word
    case Refusal::kLost:
    case Refusal::kLinked:
    case Refusal::kNoLink:
      return false;
    default:
      return true;
  }
}

}  // namespace

Pool::Peer* Pool::Find(MemberId id) {
  const auto found = peers_.find(id);
  return found == peers_.end() ? nullptr : &found->second;
}

const Pool::Peer* Pool::Find(MemberId id) const {
  const auto found = peers_.find(id);
  return found == peers_.end() ? nullptr : &found->second;
}

Pool::Peer* Pool::FindOrAdd(const Member& member) {
  Peer& peer = peers_[member.id];
  if (!peer.is_known) peer.member = member;
  peer.is_known = peer.is_known || !member.host.empty();
  return &peer;
}

// Connect ---------------------------------------------------------------------------------------------------

Status Pool::Connect(const std::vector<Member>& peers, double timeout_s) {
  auto outcome = std::make_shared<std::promise<Status>>();
  std::future<Status> waited = outcome->get_future();
  ConnectLater(peers, timeout_s, [outcome](Status status) { outcome->set_value(std::move(status)); });
  return waited.get();
}

void Pool::ConnectLater(std::vector<Member> peers, double timeout_s, std::function<void(Status)> done) {
  loop_.Post([this, timeout_s, peers = std::move(peers), done = std::move(done)]() mutable {
    if (has_ended_.load()) return done(ended_why_);
    StartConnect(std::move(peers), timeout_s, std::move(done));
  });
}

void Pool::StartConnect(std::vector<Member> peers, double timeout_s, std::function<void(Status)> done) {
  BeginAccepting();
  ConnectCall call;
  call.done = std::move(done);
  for (const Member& member : peers) {
    if (member.id == self_.id) continue;
    call.peers.push_back(member.id);
    FindOrAdd(member)->final_failure.clear();
  }
  const std::vector<MemberId> ids = call.peers;
  call.deadline = loop_.RunAfter(timeout_s, [this, id = ++next_connect_] {
    for (size_t i = 0; i < connects_.size(); ++i)
      if (connects_[i].id == id) return EndConnect(i, true);
  });
  call.id = next_connect_;
  connects_.push_back(std::move(call));
  for (const MemberId id : ids) StartDialling(Find(id));
  CheckConnects();
}

bool Pool::IsSettled(MemberId id) const {
  const Peer* peer = Find(id);
  if (peer->is_lost || !peer->final_failure.empty()) return true;
  return peer->link != nullptr && peer->link->HasAllSockets();
}

bool Pool::IsWanted(MemberId id) const {
  return std::any_of(connects_.begin(), connects_.end(), [&](const ConnectCall& call) {
    return std::find(call.peers.begin(), call.peers.end(), id) != call.peers.end();
  });
}

void Pool::CheckConnects() {
  for (size_t i = connects_.size(); i-- > 0;) {
    const std::vector<MemberId>& ids = connects_[i].peers;
    if (std::all_of(ids.begin(), ids.end(), [&](MemberId id) { return IsSettled(id); })) EndConnect(i, false);
  }
}

void Pool::EndConnect(size_t index, bool is_late) {
  const ConnectCall call = std::move(connects_[index]);
  connects_.erase(connects_.begin() + static_cast<ptrdiff_t>(index));
  loop_.Drop(call.deadline);
  for (const MemberId id : call.peers)
    if (!IsWanted(id)) StopDialling(Find(id));
  call.done(Outcome(call, is_late));
}

Status Pool::Outcome(const ConnectCall& call, bool is_late) const {
  std::string missing;
  size_t num_missing = 0;
  for (const MemberId id : call.peers) {
    const Peer* peer = Find(id);
    if (!peer->is_lost && peer->link != nullptr && peer->link->HasAllSockets()) continue;
    ++num_missing;
    std::string why = peer->last_failure.empty() ? "no answer" : peer->last_failure;
    if (!peer->final_failure.empty()) why = peer->final_failure;
    missing += (missing.empty() ? "" : "; ");
    missing += peer->is_lost ? peer->loss.message() : Describe(peer->member) + ": " + why;
  }
  if (num_missing == 0) return Status::Ok();
  return Status(is_late ? StatusCode::kDeadlineExceeded : StatusCode::kPeerLost,
                "no link to " + std::to_string(num_missing) + " of " + std::to_string(call.peers.size()) +
                    " members" + (is_late ? " in time: " : ": ") + missing);
}

// Dialling --------------------------------------------------------------------------------------------------

void Pool::StartDialling(Peer* peer) {
  if (peer->is_dialling || peer->is_lost || peer->link != nullptr) return;
  peer->is_dialling = true;
  if (self_.id < peer->member.id) return DialTurn(peer->member.id);
  DialAgainLater(peer, kHeadStart_s);
}

void Pool::DialAgainLater(Peer* peer, double delay_s) {
  peer->next_dial = loop_.RunAfter(delay_s, [this, id = peer->member.id] { DialTurn(id); });
}

void Pool::DialTurn(MemberId id) {
  Peer* peer = Find(id);
  if (!IsWanted(id)) return StopDialling(peer);
  DialAgainLater(peer, kBetweenDials_s);  // first: the attempt may end the call that wants it
  if (peer->link == nullptr) DialNext(peer);
}

// One address after the other, each again once its last attempt has ended.
void Pool::DialNext(Peer* peer) {
  const Member& member = peer->member;
  Handshake::Target target;
  target.member = member;
  target.link = RandomId();
  if (member.host == self_.host && !member.local_address.empty()) {
    target.address = member.local_address;
    target.num_bulk_sockets = 1;
  } else if (!member.addresses.empty()) {
    target.address = member.addresses[peer->num_dials++ % member.addresses.size()];
    target.num_bulk_sockets = options_.num_bulk_sockets;
  }
  if (target.address.empty() || IsDialled(member.id, target.address)) return;
  StartDial(member, std::move(target));
}

bool Pool::IsDialled(MemberId id, const std::string& address) const {
  return std::any_of(handshakes_.begin(), handshakes_.end(), [&](const auto& entry) {
    const Handshake& handshake = *entry.second;
    return handshake.role() == Handshake::Role::kDialer && handshake.target().member.id == id &&
           handshake.target().address == address;
  });
}

void Pool::StartDial(const Member& member, Handshake::Target target) {
  const bool is_local = target.address == member.local_address;
  Result<Socket> socket = is_local ? DialLocal(target.address) : DialTcp(target.address);
  Status status = socket.status();
  if (status.ok() && !is_local) status = TuneTcp(socket.value(), options_.failure_timeout_s);
  if (status.ok()) {
    auto handshake = Handshake::Dial(&loop_, this, std::move(socket).value(), is_local, std::move(target));
    status = handshake->Start(options_.handshake_timeout_s);
    if (status.ok()) return Keep(std::move(handshake));
  }
  Peer* peer = Find(member.id);
  peer->last_failure = status.message();
  if (!is_local || Exists(member.pid)) return;
  peer->final_failure = "its process has ended";
  CheckConnects();
}

void Pool::OnPeerReady(MemberId id) {
  Peer* peer = Find(id);
  if (peer == nullptr || peer->link == nullptr) return;
  for (int i = 1; i <= peer->link->identity().num_bulk_sockets; ++i)
    if (!peer->link->HasSocket(static_cast<size_t>(i))) DialFurther(id, static_cast<size_t>(i));
}

void Pool::DialFurther(MemberId id, size_t index) {
  Peer* peer = Find(id);
  if (peer == nullptr || peer->link == nullptr) return;
  const Link::Identity& link = peer->link->identity();
  Handshake::Target target;
  target.member = peer->member;
  target.address = link.dialled_address;
  target.link = link.link;
  target.socket = index;
  target.num_bulk_sockets = link.num_bulk_sockets;
  StartDial(peer->member, std::move(target));
}

void Pool::StopDialling(Peer* peer) {
  if (peer->is_dialling) loop_.Drop(peer->next_dial);
  peer->is_dialling = false;
  std::vector<Handshake*> dials;
  for (const auto& [key, handshake] : handshakes_)
    if (handshake->role() == Handshake::Role::kDialer && handshake->target().socket == 0 &&
        handshake->target().member.id == peer->member.id)
      dials.push_back(key);
  for (Handshake* dial : dials) Drop(dial);
}

// Accepting -------------------------------------------------------------------------------------------------

void Pool::BeginAccepting() {
  if (std::exchange(is_accepting_, true)) return;
  for (auto& [socket, is_local] : listening_) {
    listeners_.push_back(std::make_unique<Listener>(
        &loop_, std::move(socket),
        [this, is_local = is_local](Socket accepted) { OnAccepted(std::move(accepted), is_local); }));
    if (Status status = listeners_.back()->Start(); !status.ok()) throw std::runtime_error(status.message());
  }
  listening_.clear();
}

void Pool::OnAccepted(Socket socket, bool is_local) {
  if (strangers_.size() >= kMaxStrangers) {
    NoteRefusal(*strangers_.front(), "too many connections wait for their greeting");
    Drop(strangers_.front());
  }
  if (!is_local && !TuneTcp(socket, options_.failure_timeout_s).ok()) return;  // it has left again
  auto handshake = Handshake::Accept(&loop_, this, std::move(socket), is_local);
  if (!handshake->Start(options_.handshake_timeout_s).ok()) return;
  strangers_.push_back(handshake.get());
  Keep(std::move(handshake));
}

void Pool::Keep(std::unique_ptr<Handshake> handshake) {
  Handshake* key = handshake.get();
  handshakes_.emplace(key, std::move(handshake));
}

void Pool::Drop(Handshake* handshake) {
  strangers_.erase(std::remove(strangers_.begin(), strangers_.end(), handshake), strangers_.end());
  const auto found = handshakes_.find(handshake);
  if (found == handshakes_.end()) return;
  handshake->Close();
  loop_.Discard(std::move(found->second));
  handshakes_.erase(found);
}

// Handshakes ------------------------------------------------------------------------------------------------

Greeting Pool::MakeGreeting() {
  Greeting greeting;
  greeting.job = options_.job;
  greeting.member = self_;
  greeting.epoch = epoch_.load();
  greeting.has_segment = options_.segment_fd >= 0;
  return greeting;
}

Refusal Pool::CheckHello(const Handshake& handshake) {
  if (handshake.hello().socket > 0) return CheckFurther(handshake);
  if (handshake.peer().member.id == self_.id) return Refusal::kWrongMember;
  const Peer* peer = Find(handshake.peer().member.id);
  if (peer == nullptr) return Refusal::kNone;
  if (peer->is_lost) return Refusal::kLost;
  return peer->link != nullptr ? Refusal::kLinked : Refusal::kNone;
}

// Another socket must belong to a link that its sender has dialled and that lacks it.
Refusal Pool::CheckFurther(const Handshake& handshake) const {
  const Peer* peer = Find(handshake.peer().member.id);
  if (peer == nullptr || peer->link == nullptr) return Refusal::kNoLink;
  const Link::Identity& link = peer->link->identity();
  const bool accepts = handshake.role() == Handshake::Role::kAcceptor;
  const size_t index = handshake.hello().socket;
  const bool fits = link.link == handshake.hello().link && link.is_local == handshake.is_local() &&
                    link.dialled_address.empty() == accepts &&
                    index <= static_cast<size_t>(link.num_bulk_sockets) && !peer->link->HasSocket(index);
  return fits ? Refusal::kNone : Refusal::kNoLink;
}

Refusal Pool::Choose(const Handshake& handshake) {
  strangers_.erase(std::remove(strangers_.begin(), strangers_.end(), &handshake), strangers_.end());
  if (handshake.hello().socket > 0) return CheckFurther(handshake);
  Peer* peer = FindOrAdd(handshake.peer().member);
  if (peer->is_lost) return Refusal::kLost;
  if (peer->link != nullptr) return Refusal::kLinked;
  if (self_.id > peer->member.id) return Refusal::kNone;
  const uint64_t link = handshake.hello().link;
  if (peer->chosen_link != 0 && peer->chosen_link != link) return Refusal::kLinked;
  peer->chosen_link = link;
  return Refusal::kNone;
}

void Pool::OnEstablished(Handshake* handshake) {
  const MemberId id = handshake->peer().member.id;
  Peer* peer = Find(id);
  const size_t index = handshake->hello().socket;
  Status status(StatusCode::kPeerLost, "it was lost meanwhile");
  if (peer != nullptr && index > 0 && CheckFurther(*handshake) == Refusal::kNone)
    status = peer->link->AddSocket(index, handshake->TakeSocket());
  if (peer != nullptr && index == 0 && !peer->is_lost && peer->link == nullptr)
    status = MakeLink(handshake, peer);
  Drop(handshake);
  if (!status.ok() && peer != nullptr && peer->link != nullptr)
    return Lose(peer, Loss::kUnreachable, status.message(), "");
  unflushed_.insert(id);
  CheckConnects();
}

Status Pool::MakeLink(Handshake* handshake, Peer* peer) {
  const bool accepts = handshake->role() == Handshake::Role::kAcceptor;
  Link::Identity identity;
  identity.peer = peer->member.id;
  identity.link = handshake->hello().link;
  identity.is_local = handshake->is_local();
  identity.num_bulk_sockets = handshake->hello().num_bulk_sockets;
  if (!accepts) identity.dialled_address = handshake->target().address;
  Socket socket = handshake->TakeSocket();
  Facts facts;
  facts.is_local = identity.is_local;
  facts.epoch = handshake->peer().epoch;
  facts.segment = handshake->TakeSegment();
  Status watched = WatchProcess(handshake, peer, socket, &facts.pidfd);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    facts_[identity.peer] = std::move(facts);
  }
  StopDialling(peer);
  peer->link = std::make_unique<Link>(&loop_, &mailbox_, static_cast<Link::Host*>(this), std::move(identity));
  if (accepts) peer->link->outbox().AddControl(FrameType::kReady, "");
  const Status added = peer->link->AddSocket(0, std::move(socket));
  return watched.ok() ? added : watched;
}

Status Pool::WatchProcess(Handshake* handshake, Peer* peer, const Socket& socket, OwnedFd* pidfd) {
  if (!handshake->is_local()) return Status::Ok();
  Result<OwnedFd> opened = OpenPidfd(socket, peer->member.pid);
  if (!opened.ok()) return opened.status();
  *pidfd = std::move(opened).value();
  peer->watch = std::make_unique<ProcessWatch>(&loop_, pidfd->get(),
                                               [this, id = peer->member.id] { OnProcessEnded(id); });
  return peer->watch->Start();
}

void Pool::OnFailed(Handshake* handshake, Refusal refusal, const std::string& why) {
  if (handshake->role() == Handshake::Role::kAcceptor && IsOfStranger(refusal, *handshake))
    NoteRefusal(*handshake, why);
  const bool dials = handshake->role() == Handshake::Role::kDialer;
  const MemberId id = dials ? handshake->target().member.id : handshake->peer().member.id;
  const size_t index = dials ? handshake->target().socket : handshake->hello().socket;
  Peer* peer = Find(id);
  if (peer != nullptr && peer->chosen_link == handshake->hello().link && peer->link == nullptr)
    peer->chosen_link = 0;
  Drop(handshake);
  if (peer == nullptr || !dials) return;
  if (index == 0) {
    if (refusal != Refusal::kLinked) peer->last_failure = why;
    if (refusal == Refusal::kLost) peer->final_failure = why;
    return CheckConnects();
  }
  if (peer->link == nullptr) return;
  if (++peer->num_retries > kMaxRetries)
    return Lose(peer, Loss::kUnreachable, "one of its sockets: " + why, "");
  loop_.RunAfter(kBetweenDials_s, [this, id, index] { DialFurther(id, index); });
}

void Pool::NoteRefusal(const Handshake& handshake, const std::string& why) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++refusals_.count;
  refusals_.newest.push_back(handshake.peer_name() + ": " + why);
  if (refusals_.newest.size() > kMaxRefusalsKept) refusals_.newest.erase(refusals_.newest.begin());
}

}  // namespace elastates
