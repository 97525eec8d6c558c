#include <cstring>

#include "comm/collectives/messages.h"

namespace elastates {

void CopyPiece(const ElementSpan& from, const ElementSpan& to, size_t element_bytes) {
  if (from.data != to.data && from.count > 0) std::memcpy(to.data, from.data, from.count * element_bytes);
}

Status PairwiseGather(Operation& op, const Collective& collective) {
  const size_t element_bytes = SizeOf(collective.type);
  const ElementSpan& mine = collective.in[0];
  if (op.rank() != collective.root) {
    op.Send(collective.root, 0, mine.data, mine.count * element_bytes);
    return op.Wait();
  }
  for (int peer = 0; peer < op.size(); ++peer) {
    const ElementSpan& piece = collective.out[peer];
    if (peer != op.rank()) op.Receive(peer, 0, piece.data, piece.count * element_bytes);
  }
  CopyPiece(mine, collective.out[op.rank()], element_bytes);
  return op.Wait();
}

Status PairwiseScatter(Operation& op, const Collective& collective) {
  const size_t element_bytes = SizeOf(collective.type);
  const ElementSpan& mine = collective.out[0];
  if (op.rank() != collective.root) {
    op.Receive(collective.root, 0, mine.data, mine.count * element_bytes);
    return op.Wait();
  }
  for (int peer = 0; peer < op.size(); ++peer) {
    const ElementSpan& piece = collective.in[peer];
    if (peer != op.rank()) op.Send(peer, 0, piece.data, piece.count * element_bytes);
  }
  CopyPiece(collective.in[op.rank()], mine, element_bytes);
  return op.Wait();
}

Status PairwiseAllToAll(Operation& op, const Collective& collective) {
  const size_t element_bytes = SizeOf(collective.type);
  for (int step = 1; step < op.size(); ++step) {  // each starts with another, so that nobody is flooded
    const int to = (op.rank() + step) % op.size();
    const int from = (op.rank() - step + op.size()) % op.size();
    op.Receive(from, 0, collective.out[from].data, collective.out[from].count * element_bytes);
    op.Send(to, 0, collective.in[to].data, collective.in[to].count * element_bytes);
  }
  CopyPiece(collective.in[op.rank()], collective.out[op.rank()], element_bytes);
  return op.Wait();
}

Status PairwiseAllGather(Operation& op, const Collective& collective) {
  Collective spread = collective;
  spread.in.assign(op.size(), collective.in[0]);
  return PairwiseAllToAll(op, spread);
}

// Everybody's piece for this member comes into scratch and is combined in the order of the ranks.
Status PairwiseReduceScatter(Operation& op, const Collective& collective) {
  const DataType type = collective.type;
  const size_t count = collective.out[0].count;
  const size_t own_bytes = count * SizeOf(type);
  size_t total_bytes = op.size() * own_bytes;
  for (const ElementSpan& piece : collective.in) total_bytes += piece.count * SizeOf(type);
  char* const scratch = op.Scratch(total_bytes);
  char* outgoing = scratch + op.size() * own_bytes;
  std::vector<const void*> sources(op.size());
  for (int peer = 0; peer < op.size(); ++peer) {
    char* const incoming = scratch + peer * own_bytes;
    sources[peer] = incoming;
    const ElementSpan& piece = collective.in[peer];
    char* const prepared = peer == op.rank() ? incoming : outgoing;
    Prepare(type, collective.reduction, prepared, piece.data, piece.count);
    if (peer == op.rank()) continue;
    op.Receive(peer, 0, incoming, own_bytes);
    op.Send(peer, 0, outgoing, piece.count * SizeOf(type));
    outgoing += piece.count * SizeOf(type);
  }
  const Status status = op.Wait();
  if (!status.ok()) return status;
  CombineAll(type, collective.reduction.kind, collective.out[0].data, sources.data(), op.size(), count);
  Conclude(type, collective.reduction, collective.out[0].data, count, op.size());
  return Status::Ok();
}

}  // namespace elastates
