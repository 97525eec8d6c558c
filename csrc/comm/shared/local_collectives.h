// LocalCollectives: the collective operations of a group whose members all share one host's memory.
//
// Belongs to one group and is used on its thread alone. A board is opened with the first operation of an
// epoch and closed with the next one, or when this dies.
#ifndef ELASTATES_COMM_SHARED_LOCAL_COLLECTIVES_H_
#define ELASTATES_COMM_SHARED_LOCAL_COLLECTIVES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "comm/collectives/collectives.h"
#include "comm/shared/board.h"
#include "comm/shared/neighbours.h"

namespace elastates {

class LocalCollectives {
 public:
  // `neighbours` outlives this; `group` is equal on all members.
  LocalCollectives(Neighbours* neighbours, uint64_t group) : neighbours_(neighbours), group_(group) {}

  // The same on all members of the view, and for all operations.
  static bool Handles(const View& view);

  // Does this member's part, like RunCollective(). REQUIRES: the pieces have been checked,
  // Handles(op.view()).
  Status Run(Operation& op, const Collective& collective);

 private:
  Status Enter(Operation& op);

  Neighbours* const neighbours_;
  const uint64_t group_;
  uint32_t epoch_ = 0;
  std::vector<std::shared_ptr<Neighbour>> members_;  // by rank, null at our own; the board refers to them
  std::unique_ptr<Board> board_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_LOCAL_COLLECTIVES_H_
