// Exchange: one collective operation between processes of one host, in rounds through their windows.
//
//   round:  show pieces in the own window | meet the others | take what they show
//
// In the first round each member also posts what it is about to do, so that members that disagree find out
// instead of hanging. A round moves at most a window's worth, chosen so that what one process shows is still
// in the second-level cache when the others read it. Lives for one operation on the group's thread.
#ifndef ELASTATES_COMM_SHARED_EXCHANGE_H_
#define ELASTATES_COMM_SHARED_EXCHANGE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/status.h"
#include "comm/collectives/collectives.h"
#include "comm/shared/board.h"
#include "comm/shared/neighbours.h"

namespace elastates {

// While the operation may go on, and has not lost the rank that is waited for.
KeepWaiting PatienceOf(Operation& op);

class Exchange {
 public:
  // All outlive the exchange; of `members`, by rank, our own is null.
  Exchange(Board& board, const std::vector<std::shared_ptr<Neighbour>>& members, Operation& op,
           const Collective& collective);

  int rank() const { return board_.rank(); }
  int size() const { return board_.size(); }
  const Collective& collective() const { return collective_; }
  size_t element_bytes() const { return element_bytes_; }

  // Elements of a piece that a window shows, where all see the same and where each other member has a part of
  // its own.
  size_t common_count() const;
  size_t part_count() const;

  // `show` writes to window(), `take` reads what window_of() a rank gives; both get the number of the round.
  // As many rounds as the member needs that needs most; at least one. The error of the first that fails.
  using Show = std::function<void(uint64_t round)>;
  using Take = std::function<Status(uint64_t round)>;
  Status Run(uint64_t num_rounds, const Show& show, const Take& take);

  // Of the coming round, from element `begin` on; what `take` writes here is shown in the round after.
  char* window(size_t begin = 0) const;
  const char* window_of(int rank, size_t begin = 0) const;

  // Where only pairs of members know how long a piece is, the one that shows it says so in the first round,
  // and the one that takes it asks. `part`: for whom it is; 0 if it is for all.
  void ShowLength(int part, size_t count);
  Status CheckLength(int from, int part, size_t expected) const;

  // Whether all members can read each other's private memory.
  bool all_read() const { return board_.all_read(); }
  // From another member's memory, in blocks, checked one by one. REQUIRES: all_read().
  Status Read(int rank, uint64_t address, void* target, size_t size_bytes) const;
  char* Scratch(size_t size_bytes) const { return op_.Scratch(size_bytes); }

  // From a window to where the operation's result belongs.
  void CopyOut(void* target, const char* source, size_t size_bytes) const;

 private:
  struct Post;

  Post OwnPost(uint64_t num_rounds) const;
  Status ReadPosts(const Post& own, uint64_t* num_rounds) const;
  Status ConfirmAll() const;

  Board& board_;
  const std::vector<std::shared_ptr<Neighbour>>& members_;
  Operation& op_;
  const Collective& collective_;
  const size_t element_bytes_;
  const bool streams_;  // the result is too large to be in a cache anyway
};

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_EXCHANGE_H_
