#include <algorithm>
#include <cstring>
#include <vector>

#include "comm/collectives/messages.h"
#include "comm/shared/local_algorithms.h"

namespace elastates {
namespace {

// What this member shows, and what it takes from each rank; empty pieces where there is nothing.
struct Moves {
  std::vector<ElementSpan> shown;  // one for all, or one for each rank
  std::vector<ElementSpan> taken;  // by rank
  bool has_parts = false;          // every member shows one piece for each rank
};

Moves PlanMoves(const Collective& collective, int rank, int size) {
  Moves moves;
  moves.taken.resize(size);
  const bool is_root = rank == collective.root;
  switch (collective.kind) {
    case CollectiveKind::kBroadcast:
      if (is_root) moves.shown = collective.out;
      if (!is_root) moves.taken[collective.root] = collective.out[0];
      break;
    case CollectiveKind::kGather:
      if (!is_root) moves.shown = collective.in;
      if (is_root) moves.taken = collective.out;
      break;
    case CollectiveKind::kAllGather:
      moves.shown = collective.in;
      moves.taken = collective.out;
      break;
    case CollectiveKind::kScatter:
      moves.has_parts = true;
      moves.shown = collective.in;
      moves.taken[collective.root] = collective.out[0];
      break;
    case CollectiveKind::kAllToAll:
      moves.has_parts = true;
      moves.shown = collective.in;
      moves.taken = collective.out;
      break;
    default:
      break;
  }
  return moves;
}

// What it sends to itself goes straight there.
void CopyOwn(Moves* moves, const Collective& collective, int rank, size_t element_bytes) {
  ElementSpan& target = moves->taken[rank];
  if (target.count == 0) return;
  CopyPiece(moves->has_parts ? moves->shown[rank] : collective.in[0], target, element_bytes);
  target.count = 0;
  if (moves->has_parts) moves->shown[rank].count = 0;
}

bool TakesFrom(const Collective& collective, int from, int rank) {
  switch (collective.kind) {
    case CollectiveKind::kBroadcast:
    case CollectiveKind::kScatter:
      return from == collective.root;
    case CollectiveKind::kGather:
      return rank == collective.root;
    case CollectiveKind::kAllGather:
    case CollectiveKind::kAllToAll:
      return true;
    default:
      return false;
  }
}

uint64_t RoundsOf(const std::vector<ElementSpan>& pieces, size_t count_per_round) {
  size_t longest = 0;
  for (const ElementSpan& piece : pieces) longest = std::max(longest, piece.count);
  return (longest + count_per_round - 1) / count_per_round;
}

// The bytes of a piece that belong to a round.
struct Slice {
  char* data;
  size_t size_bytes;
};

Slice SliceOf(const ElementSpan& piece, uint64_t round, size_t count_per_round, size_t element_bytes) {
  const size_t begin = std::min<size_t>(piece.count, round * count_per_round);
  const size_t count = std::min(count_per_round, piece.count - begin);
  return {piece.data + begin * element_bytes, count * element_bytes};
}

}  // namespace

Status MoveLocally(Exchange& exchange) {
  const size_t element_bytes = exchange.element_bytes();
  const int rank = exchange.rank(), size = exchange.size();
  Moves moves = PlanMoves(exchange.collective(), rank, size);
  CopyOwn(&moves, exchange.collective(), rank, element_bytes);
  const size_t count = moves.has_parts ? exchange.part_count() : exchange.common_count();
  const size_t stride = moves.has_parts ? count : 0;
  const auto show = [&](uint64_t round) {
    for (size_t part = 0; part < moves.shown.size(); ++part) {
      if (round == 0) exchange.ShowLength(static_cast<int>(part), moves.shown[part].count);
      const Slice slice = SliceOf(moves.shown[part], round, count, element_bytes);
      if (slice.size_bytes > 0) std::memcpy(exchange.window(part * stride), slice.data, slice.size_bytes);
    }
  };
  const auto take = [&](uint64_t round) {
    for (int step = 1; step < size; ++step) {  // not all from the same one first
      const int from = (rank + step) % size;
      if (round == 0 && TakesFrom(exchange.collective(), from, rank)) {
        Status status = exchange.CheckLength(from, moves.has_parts ? rank : 0, moves.taken[from].count);
        if (!status.ok()) return status;
      }
      const Slice slice = SliceOf(moves.taken[from], round, count, element_bytes);
      exchange.CopyOut(slice.data, exchange.window_of(from, rank * stride), slice.size_bytes);
    }
    return Status::Ok();
  };
  return exchange.Run(RoundsOf(moves.shown, count), show, take);
}

}  // namespace elastates
