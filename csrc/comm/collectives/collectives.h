// What a collective operation is, as data, and the one entry point that chooses how it is done.
//
// Knows nothing of tensors: contiguous pieces of memory of one type. `in` and `out` have a piece per rank, or
// one, as stated; a piece may be empty, and those of one rank have the same length on both ends.
//
//                  in             out
//   broadcast      -              1 (the root's is read)
//   all-reduce     1              1, may be the same
//   reduce         1              1 on the root, may be the same
//   all-gather     1              n
//   gather         1              n on the root
//   scatter        n on the root  1
//   reduce-scatter n              1, may be in[rank]
//   all-to-all     n              n
//   barrier        -              -
#ifndef ELASTATES_COMM_COLLECTIVES_COLLECTIVES_H_
#define ELASTATES_COMM_COLLECTIVES_COLLECTIVES_H_

#include <cstddef>
#include <vector>

#include "base/status.h"
#include "comm/group.h"
#include "comm/reduce.h"

namespace elastates {

enum class CollectiveKind {
  kBroadcast,
  kAllReduce,
  kReduce,
  kAllGather,
  kGather,
  kScatter,
  kReduceScatter,
  kAllToAll,
  kBarrier,
};

struct ElementSpan {
  char* data = nullptr;  // of `in` only read
  size_t count = 0;      // elements
};

struct Collective {
  CollectiveKind kind = CollectiveKind::kBarrier;
  int root = 0;
  DataType type = DataType::kUint8;
  Reduction reduction;
  std::vector<ElementSpan> in, out;
};

const char* NameOf(CollectiveKind kind);

// kInvalidArgument if the pieces do not fit a member of this rank in a group of this size, or the reduction
// the type.
Status CheckCollective(int rank, int size, const Collective& collective);

// Does this member's part; to be called from the body of an operation. Pieces of `in` stay as they are, but
// for those that are in `out` too. After an error `out` holds anything, and nothing else has been written to.
// CheckCollective() comes first, before anything is sent.
Status RunCollective(Operation& op, const Collective& collective);

}  // namespace elastates

#endif  // ELASTATES_COMM_COLLECTIVES_COLLECTIVES_H_
