#include "comm/links/link.h"

#include <algorithm>
#include <utility>

namespace elastates {
namespace {

// From the first broken socket to the end of the link. The kernel closes all sockets of a process that dies,
// and shortly after reports its end: so the others may still bring what was sent before, and a local peer is
// better reported dead than unreachable.
constexpr double kLastWords_s = 0.1;
constexpr double kDeathNotice_s = 0.25;

}  // namespace

Link::Link(EventLoop* loop, Mailbox* mailbox, Host* host, Identity identity)
    : loop_(loop),
      mailbox_(mailbox),
      host_(host),
      identity_(std::move(identity)),
      connections_(static_cast<size_t>(identity_.num_bulk_sockets) + 1) {}

bool Link::HasAllSockets() const {
  return std::all_of(connections_.begin(), connections_.end(),
                     [](const auto& made) { return made != nullptr; });
}

Status Link::AddSocket(size_t index, Socket socket) {
  connections_[index] = std::make_unique<Connection>(loop_, this, &outbox_, index, std::move(socket));
  return connections_[index]->Start();
}

void Link::Flush() {
  if (connections_[0] != nullptr) connections_[0]->Flush();
  for (size_t i = 1; i < connections_.size() && outbox_.HasBulk(); ++i)
    if (connections_[i] != nullptr) connections_[i]->Flush();
}

void Link::Complete(const Outbox::Matches& matches, const Status& why) {
  for (const auto& connection : connections_)
    if (connection != nullptr) connection->Release(matches);
  outbox_.Complete(matches, why);
}

void Link::ReadLastWords() {
  for (const auto& connection : connections_)
    if (connection != nullptr) connection->ReadAll();
}

// Connections may be on the stack: they go when nobody can be using them.
void Link::Close() {
  if (is_closed_) return;
  is_closed_ = true;
  if (is_ending_) loop_->Drop(end_);
  for (auto& connection : connections_) {
    if (connection == nullptr) continue;
    connection->Close();
    loop_->Discard(std::move(connection));
  }
}

void Link::OnFrame(FrameType type, std::string content) {
  if (type == FrameType::kControl) host_->OnControl(identity_.peer, content);
  if (type == FrameType::kReady && !identity_.dialled_address.empty()) host_->OnPeerReady(identity_.peer);
  if (type == FrameType::kGoodbye) said_goodbye_ = true;
}

Mailbox::IncomingPtr Link::OnSliceBegin(const FrameHeader& header, std::string* why) {
  return mailbox_->Begin(identity_.peer, header, why);
}

void Link::OnSliceEnd(const Mailbox::IncomingPtr& incoming, const FrameHeader& header) {
  mailbox_->End(incoming, header);
}

bool Link::IsAnyOpen() const {
  return std::any_of(connections_.begin(), connections_.end(),
                     [](const auto& made) { return made != nullptr && made->is_open(); });
}

void Link::OnBroken(Connection*, const std::string& why) {
  if (is_closed_) return;
  if (why_.empty()) why_ = why;
  const bool awaits_death = identity_.is_local && !said_goodbye_;
  if (is_ending_) loop_->Drop(end_);
  is_ending_ = true;
  double patience_s = awaits_death ? kDeathNotice_s : kLastWords_s;
  if (!awaits_death && !IsAnyOpen()) patience_s = 0;
  end_ = loop_->RunAfter(patience_s, [this] { End(); });
}

void Link::End() { host_->OnLinkEnded(identity_.peer, said_goodbye_ ? "it has closed its links" : why_); }

}  // namespace elastates
