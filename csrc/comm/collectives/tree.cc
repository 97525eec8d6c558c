#include "comm/collectives/messages.h"

namespace elastates {
namespace {

// Ranks counted from the root.
struct Relative {
  int root, size;
  int Of(int rank) const { return (rank - root + size) % size; }
  int Rank(int relative) const { return (relative + root) % size; }
};

}  // namespace

// Binomial: in round k those below 2^k hand on to the one 2^k above them.
Status TreeBroadcast(Operation& op, const Collective& collective) {
  const ElementSpan& piece = collective.out[0];
  const size_t size_bytes = piece.count * SizeOf(collective.type);
  const Relative relative{collective.root, op.size()};
  const int me = relative.Of(op.rank());
  int distance = 1;
  while (distance <= me) distance *= 2;  // twice the round in which it comes to this member
  if (me > 0) {
    op.Receive(relative.Rank(me - distance / 2), 0, piece.data, size_bytes);
    const Status status = op.Wait();
    if (!status.ok()) return status;
  }
  for (; me + distance < op.size(); distance *= 2) {
    op.Send(relative.Rank(me + distance), 0, piece.data, size_bytes);
  }
  return op.Wait();
}

// The same tree from its leaves: sums are made in scratch, and only the root's out is written.
Status TreeReduce(Operation& op, const Collective& collective) {
  const ElementSpan& mine = collective.in[0];
  const size_t size_bytes = mine.count * SizeOf(collective.type);
  const Relative relative{collective.root, op.size()};
  const int me = relative.Of(op.rank());
  char* const sum = op.Scratch(2 * size_bytes);
  char* const incoming = sum + size_bytes;
  Prepare(collective.type, collective.reduction, sum, mine.data, mine.count);
  for (int distance = 1; distance < op.size(); distance *= 2) {
    if (me & distance) {
      op.Send(relative.Rank(me - distance), 0, sum, size_bytes);
      return op.Wait();
    }
    if (me + distance >= op.size()) continue;
    op.Receive(relative.Rank(me + distance), 0, incoming, size_bytes);
    const Status status = op.Wait();
    if (!status.ok()) return status;
    Combine(collective.type, collective.reduction.kind, sum, sum, incoming, mine.count);
  }
  Conclude(collective.type, collective.reduction, sum, mine.count, op.size());
  CopyPiece({sum, mine.count}, collective.out[0], SizeOf(collective.type));
  return Status::Ok();
}

namespace {

// Members beyond the largest power of two give their input to a partner and get its result.
struct Folding {
  int power = 1;  // the largest power of two that is not above n
  int extra = 0;  // n - power
  explicit Folding(int size) {
    while (power * 2 <= size) power *= 2;
    extra = size - power;
  }
};

enum DoublingTag : uint32_t { kFold = 1000, kUnfold = 1001 };  // rounds have tags of their own below

}  // namespace

Status DoublingAllReduce(Operation& op, const Collective& collective) {
  const ElementSpan& mine = collective.in[0];
  const size_t size_bytes = mine.count * SizeOf(collective.type);
  const Folding folding(op.size());
  char* const sum = op.Scratch(2 * size_bytes);
  char* const incoming = sum + size_bytes;
  Prepare(collective.type, collective.reduction, sum, mine.data, mine.count);
  const auto receive_and_add = [&](int from, uint32_t tag) {
    op.Receive(from, tag, incoming, size_bytes);
    const Status status = op.Wait();
    const char *lower = from < op.rank() ? incoming : sum, *upper = from < op.rank() ? sum : incoming;
    if (status.ok()) Combine(collective.type, collective.reduction.kind, sum, lower, upper, mine.count);
    return status;
  };

  if (op.rank() >= folding.power) {
    const int partner = op.rank() - folding.power;
    op.Receive(partner, kUnfold, collective.out[0].data, size_bytes);
    op.Send(partner, kFold, sum, size_bytes);
    return op.Wait();
  }
  const bool has_partner = op.rank() < folding.extra;
  Status status;
  if (has_partner) status = receive_and_add(op.rank() + folding.power, kFold);
  uint32_t round = 0;
  for (int distance = 1; distance < folding.power && status.ok(); distance *= 2) {
    op.Send(op.rank() ^ distance, round, sum, size_bytes);
    status = receive_and_add(op.rank() ^ distance, round++);
  }
  if (!status.ok()) return status;
  Conclude(collective.type, collective.reduction, sum, mine.count, op.size());
  if (has_partner) op.Send(op.rank() + folding.power, kUnfold, sum, size_bytes);
  CopyPiece({sum, mine.count}, collective.out[0], SizeOf(collective.type));
  return op.Wait();
}

// In round k everybody tells the one 2^k further on; after log2(n) rounds each has heard of all.
Status DisseminationBarrier(Operation& op) {
  char sent = 0, got = 0;
  uint32_t round = 0;
  for (int distance = 1; distance < op.size(); distance *= 2) {
    op.Send((op.rank() + distance) % op.size(), round, &sent, 1);
    op.Receive((op.rank() - distance + op.size()) % op.size(), round, &got, 1);
    const Status status = op.Wait();
    if (!status.ok()) return status;
    ++round;
  }
  return Status::Ok();
}

}  // namespace elastates
