#include "comm/shared/local_collectives.h"

#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "comm/shared/local_algorithms.h"

namespace elastates {
namespace {

// Up to here one more round costs more than that everybody sums everything.
constexpr size_t kFlatBytes = 64 << 10;

// Who fails and leaves is seen to have left before its word of why, and of who is dead, has come by the
// links.
constexpr auto kNewsTake = std::chrono::seconds(2);
constexpr auto kBetweenLooks = std::chrono::milliseconds(5);

Status Explain(Operation& op, Status status) {
  const auto end = WaitClock::now() + kNewsTake;
  const bool has_left = status.code() == StatusCode::kRevoked;
  while (true) {
    Status reason = op.Check();
    for (int rank = 0; has_left && reason.ok() && rank < op.size(); ++rank) reason = op.CheckPeer(rank);
    if (!reason.ok()) return reason;
    if (!has_left || WaitClock::now() >= end) return status;
    std::this_thread::sleep_for(kBetweenLooks);
  }
}

Status RunExchange(Exchange& exchange) {
  if (ReadsDirectly(exchange)) return DirectExchange(exchange);
  const Collective& collective = exchange.collective();
  switch (collective.kind) {
    case CollectiveKind::kAllReduce:
      if (collective.in[0].count * exchange.element_bytes() <= kFlatBytes) return FlatAllReduce(exchange);
      return CutReduce(exchange);
    case CollectiveKind::kReduce:
      return CutReduce(exchange);
    case CollectiveKind::kReduceScatter:
      return LocalReduceScatter(exchange);
    default:
      return MoveLocally(exchange);
  }
}

}  // namespace

bool LocalCollectives::Handles(const View& view) {
  if (view.members.size() < 2 || view.members.size() > kMaxLocalMembers) return false;
  for (const Member& member : view.members) {
    if (member.host != view.members[0].host) return false;
  }
  return true;
}

Status LocalCollectives::Run(Operation& op, const Collective& collective) {
  Status status = board_ != nullptr && epoch_ == op.view().epoch ? Status::Ok() : Enter(op);
  if (!status.ok()) return status;
  op.WakeOnStop(
      [board = board_.get()] { board->Interrupt(Status(StatusCode::kRevoked, "the group was stopped")); });
  if (!board_->is_bound()) status = board_->Bind(PatienceOf(op));
  if (status.ok()) {
    Exchange exchange(*board_, members_, op, collective);
    status = RunExchange(exchange);
  }
  if (status.ok()) return status;
  board_->GiveUp();
  return Explain(op, std::move(status));
}

// The old board goes first: its peers have been told of the new epoch by now.
Status LocalCollectives::Enter(Operation& op) {
  board_.reset();
  members_.clear();
  std::vector<PeerSegment*> segments;
  for (const Member& member : op.view().members) {
    const bool is_self = static_cast<int>(segments.size()) == op.rank();
    std::shared_ptr<Neighbour> neighbour;
    if (!is_self) {
      Result<std::shared_ptr<Neighbour>> found = neighbours_->Find(member.id);
      if (!found.ok()) return found.status().WithContext("rank " + std::to_string(segments.size()));
      neighbour = found.value();
    }
    segments.push_back(is_self ? nullptr : neighbour->segment.get());
    members_.push_back(std::move(neighbour));
  }
  bool reads_all = true;
  for (const auto& member : members_) reads_all &= member == nullptr || member->memory != nullptr;
  Result<std::unique_ptr<Board>> board =
      Board::Open(neighbours_->own(), std::move(segments), op.rank(), group_, op.view().epoch, reads_all);
  if (!board.ok()) return board.status();
  board_ = std::move(board).value();
  epoch_ = op.view().epoch;
  return Status::Ok();
}

}  // namespace elastates
