// Collective operations by messages: for groups whose members are on several hosts, and wherever nothing
// faster is there. Each does this member's part; see collectives.h for the pieces.
//
//   ring      large ones: every member sends to its neighbour alone, in blocks, as they come in
//   tree      small ones, and from or to a root: log2(n) rounds
//   pairwise  each piece straight to whom it belongs
//
// n = members, r = this one's rank. Tags tell the messages of one operation apart; the functions of a header
// that call each other use disjoint ones.
#ifndef ELASTATES_COMM_COLLECTIVES_MESSAGES_H_
#define ELASTATES_COMM_COLLECTIVES_MESSAGES_H_

#include <cstdint>
#include <vector>

#include "comm/collectives/collectives.h"
#include "comm/group.h"

namespace elastates {

// Ranks in the order of a ring: those of one host side by side, so that only neighbours cross between hosts.
std::vector<int> RingOrder(const View& view);

Status RingAllReduce(Operation& op, const Collective& collective);
Status RingReduceScatter(Operation& op, const Collective& collective);
Status RingAllGather(Operation& op, const Collective& collective);
// From the root along the ring, block by block.
Status ChainBroadcast(Operation& op, const Collective& collective);

Status TreeBroadcast(Operation& op, const Collective& collective);
Status TreeReduce(Operation& op, const Collective& collective);
// Recursive doubling; each member has the same sum, to the last bit.
Status DoublingAllReduce(Operation& op, const Collective& collective);
Status DisseminationBarrier(Operation& op);

Status PairwiseGather(Operation& op, const Collective& collective);
Status PairwiseScatter(Operation& op, const Collective& collective);
Status PairwiseAllGather(Operation& op, const Collective& collective);
Status PairwiseReduceScatter(Operation& op, const Collective& collective);
Status PairwiseAllToAll(Operation& op, const Collective& collective);

// A piece's bytes from `from` to `to`, unless they are the same memory.
void CopyPiece(const ElementSpan& from, const ElementSpan& to, size_t element_bytes);

}  // namespace elastates

#endif  // ELASTATES_COMM_COLLECTIVES_MESSAGES_H_
