// All-reduce over several hosts with equally many members on each: summed through memory on every host,
// between hosts by messages, and handed round through memory again.
//
//   k members on each of m hosts: member i of a host sums the i-th of k chunks of its host, all-reduces it
//   with the members i of the other hosts, and the host's members gather the chunks
//
// A byte crosses between hosts 2 (m - 1) / m times, as in a ring of all members, but is sent by sockets
// nowhere else: with 2 + 2 members a third of the ring's messages.
#ifndef ELASTATES_COMM_COLLECTIVES_TWO_LEVELS_H_
#define ELASTATES_COMM_COLLECTIVES_TWO_LEVELS_H_

#include <optional>
#include <vector>

#include "comm/collectives/collectives.h"
#include "comm/group.h"

namespace elastates {

// A member's place in both levels.
struct TwoLevels {
  std::vector<int> here;    // ranks of the members on its host
  std::vector<int> across;  // ranks of the members, one per host, that have the same place in `here`
};

// Nothing if the view has one host, one member per host, or more on one than on another. Equal for all
// members but for whose place it is.
std::optional<TwoLevels> PlanTwoLevels(const View& view, int rank);

// REQUIRES: op.local() is not null, on all members.
Status TwoLevelAllReduce(Operation& op, const TwoLevels& levels, const Collective& collective);

}  // namespace elastates

#endif  // ELASTATES_COMM_COLLECTIVES_TWO_LEVELS_H_
