// The collective operations as rounds of an exchange; see collectives.h for the pieces.
//
// n = members, r = this one's rank. Every sum is taken in the order of ranks, whoever takes it, so that all
// members get the same bits, and the same ones from the flat and the cut algorithm.
#ifndef ELASTATES_COMM_SHARED_LOCAL_ALGORITHMS_H_
#define ELASTATES_COMM_SHARED_LOCAL_ALGORITHMS_H_

#include "comm/shared/exchange.h"

namespace elastates {

// Broadcast, gather, scatter, all-gather, all-to-all and barrier: bytes from those who have them to those who
// want them.
Status MoveLocally(Exchange& exchange);

// Everybody shows all its input, everybody sums all of it: one round, n * n times the bytes.
Status FlatAllReduce(Exchange& exchange);

// All-reduce and reduce: member r sums the r-th chunk of each piece and shows the sum in the next round.
Status CutReduce(Exchange& exchange);

Status LocalReduceScatter(Exchange& exchange);

// Where every byte has one reader, reading it where it lies saves a copy; but the kernel pins each page, so
// it pays only between some sizes. The same on all members.
bool ReadsDirectly(const Exchange& exchange);

// What ReadsDirectly(): all-reduce, broadcast and all-gather of two members, reduce-scatter.
Status DirectExchange(Exchange& exchange);

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_LOCAL_ALGORITHMS_H_
