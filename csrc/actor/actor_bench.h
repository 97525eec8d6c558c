// What a message costs: measured through the same ports, registers and lanes that everything else uses.
//
// A *message* here is one register handed to one consumer; the ACK that brings it back is included in its
// price. Blocking calls for benchmarks/actors.py; any thread.
#ifndef ELASTATES_ACTOR_ACTOR_BENCH_H_
#define ELASTATES_ACTOR_ACTOR_BENCH_H_

#include <cstdint>

namespace elastates {

// Nanoseconds per message along a chain of actors that share one lane.
double SameThreadHopNs(uint64_t messages);

// Messages per second from an actor on one lane to an actor on another.
double CrossThreadMessagesPerS(uint64_t messages);

// Growth of the process's resident memory from an early point of a cross-thread run of `messages` to its end.
int64_t CrossThreadRssGrowthBytes(uint64_t messages);

}  // namespace elastates

#endif  // ELASTATES_ACTOR_ACTOR_BENCH_H_
