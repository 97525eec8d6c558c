#include "comm/collectives/collectives.h"

#include <string>

#include "comm/collectives/messages.h"
#include "comm/collectives/two_levels.h"
#include "comm/shared/local_collectives.h"

namespace elastates {
namespace {

// Below these, rounds cost more than bytes.
constexpr size_t kSmallAllReduceBytes = 64 << 10;
constexpr size_t kSmallBroadcastBytes = 64 << 10;
constexpr size_t kSmallPieceBytes = 32 << 10;

bool Reduces(CollectiveKind kind) {
  return kind == CollectiveKind::kAllReduce || kind == CollectiveKind::kReduce ||
         kind == CollectiveKind::kReduceScatter;
}

// How many pieces there must be.
struct Shape {
  size_t in, out;
};

Shape ShapeOf(CollectiveKind kind, bool is_root, size_t size) {
  switch (kind) {
    case CollectiveKind::kBroadcast:
      return {0, 1};
    case CollectiveKind::kAllReduce:
      return {1, 1};
    case CollectiveKind::kReduce:
      return {1, is_root ? 1u : 0u};
    case CollectiveKind::kAllGather:
      return {1, size};
    case CollectiveKind::kGather:
      return {1, is_root ? size : 0};
    case CollectiveKind::kScatter:
      return {is_root ? size : 0, 1};
    case CollectiveKind::kReduceScatter:
      return {size, 1};
    case CollectiveKind::kAllToAll:
      return {size, size};
    case CollectiveKind::kBarrier:
      break;
  }
  return {0, 0};
}

// The pieces that must be equally long on this member: what it keeps of its own.
Status CheckLengths(const Collective& collective, int rank) {
  if (collective.in.empty() || collective.out.empty()) return Status::Ok();
  const ElementSpan& in = collective.in.size() == 1 ? collective.in[0] : collective.in[rank];
  const ElementSpan& out = collective.out.size() == 1 ? collective.out[0] : collective.out[rank];
  if (in.count == out.count) return Status::Ok();
  return Status(StatusCode::kInvalidArgument, std::string(NameOf(collective.kind)) + " from " +
                                                  std::to_string(in.count) + " elements to " +
                                                  std::to_string(out.count));
}

// A group of one: what it sends it also gets.
Status RunAlone(const Collective& collective) {
  if (collective.in.empty() || collective.out.empty()) return Status::Ok();
  const ElementSpan &in = collective.in[0], &out = collective.out[0];
  if (!Reduces(collective.kind)) {
    CopyPiece(in, out, SizeOf(collective.type));
  } else {
    Prepare(collective.type, collective.reduction, out.data, in.data, in.count);
  }
  return Status::Ok();
}

bool AllBelow(const std::vector<ElementSpan>& pieces, size_t limit_bytes, size_t element_bytes) {
  for (const ElementSpan& piece : pieces) {
    if (piece.count * element_bytes > limit_bytes) return false;
  }
  return true;
}

Status RunByMessages(Operation& op, const Collective& collective) {
  const size_t element_bytes = SizeOf(collective.type);
  switch (collective.kind) {
    case CollectiveKind::kBroadcast:
      if (AllBelow(collective.out, kSmallBroadcastBytes, element_bytes)) return TreeBroadcast(op, collective);
      return ChainBroadcast(op, collective);
    case CollectiveKind::kAllReduce:
      if (AllBelow(collective.in, kSmallAllReduceBytes, element_bytes)) {
        return DoublingAllReduce(op, collective);
      }
      return RingAllReduce(op, collective);
    case CollectiveKind::kReduce:
      return TreeReduce(op, collective);
    case CollectiveKind::kAllGather:  // every member knows all lengths, so that all choose alike
      if (AllBelow(collective.out, kSmallPieceBytes, element_bytes)) return PairwiseAllGather(op, collective);
      return RingAllGather(op, collective);
    case CollectiveKind::kReduceScatter:
      if (AllBelow(collective.in, kSmallPieceBytes, element_bytes)) {
        return PairwiseReduceScatter(op, collective);
      }
      return RingReduceScatter(op, collective);
    case CollectiveKind::kGather:
      return PairwiseGather(op, collective);
    case CollectiveKind::kScatter:
      return PairwiseScatter(op, collective);
    case CollectiveKind::kAllToAll:
      return PairwiseAllToAll(op, collective);
    case CollectiveKind::kBarrier:
      break;
  }
  return DisseminationBarrier(op);
}

// Through memory wherever members share it. All members must choose alike.
Status RunTheFastestWay(Operation& op, const Collective& collective) {
  LocalCollectives* local = op.local();
  if (local == nullptr) return RunByMessages(op, collective);
  if (LocalCollectives::Handles(op.view())) return local->Run(op, collective);
  if (collective.kind == CollectiveKind::kAllReduce &&
      !AllBelow(collective.in, kSmallAllReduceBytes, SizeOf(collective.type))) {
    const std::optional<TwoLevels> levels = PlanTwoLevels(op.view(), op.rank());
    if (levels) return TwoLevelAllReduce(op, *levels, collective);
  }
  return RunByMessages(op, collective);
}

}  // namespace

const char* NameOf(CollectiveKind kind) {
  static constexpr const char* kNames[] = {"broadcast",      "all-reduce", "reduce",
                                           "all-gather",     "gather",     "scatter",
                                           "reduce-scatter", "all-to-all", "barrier"};
  return kNames[static_cast<int>(kind)];
}

Status CheckCollective(int rank, int size, const Collective& collective) {
  if (collective.root < 0 || collective.root >= size) {
    return Status(StatusCode::kInvalidArgument,
                  "root " + std::to_string(collective.root) + " of a group of " + std::to_string(size));
  }
  const Shape shape = ShapeOf(collective.kind, rank == collective.root, size);
  if (collective.in.size() != shape.in || collective.out.size() != shape.out) {
    return Status(StatusCode::kInvalidArgument,
                  std::string(NameOf(collective.kind)) + " in a group of " + std::to_string(size) +
                      " needs " + std::to_string(shape.in) + " inputs and " + std::to_string(shape.out) +
                      " outputs, not " + std::to_string(collective.in.size()) + " and " +
                      std::to_string(collective.out.size()));
  }
  if (Reduces(collective.kind)) {
    const Status status = CheckReduction(collective.type, collective.reduction);
    if (!status.ok()) return status;
  }
  return CheckLengths(collective, rank);
}

Status RunCollective(Operation& op, const Collective& collective) {
  const Status status = CheckCollective(op.rank(), op.size(), collective);
  if (!status.ok()) return status;
  if (op.size() == 1) return RunAlone(collective);
  return RunTheFastestWay(op, collective).WithContext(NameOf(collective.kind));
}

}  // namespace elastates
