// VotePage: a few bytes that a process leaves in its segment for the others of its host, even if it dies.
//
// Two copies: one is always whole, so an owner killed in the middle of Write() leaves its last vote. Write()
// is for one thread at a time; ReadVote() for any, in any process that maps the segment.
#ifndef ELASTATES_COMM_SHARED_VOTE_PAGE_H_
#define ELASTATES_COMM_SHARED_VOTE_PAGE_H_

#include <string>

#include "base/status.h"
#include "comm/shared/layout.h"

namespace elastates {

class VotePage {
 public:
  explicit VotePage(VoteArea* area) : area_(area) {}

  // When it returns every reader gets these bytes, also if this process ends now. kInvalidArgument if they
  // are more than kVoteBytes.
  Status Write(const std::string& bytes);

 private:
  VoteArea* const area_;
};

// What the owner wrote last; empty if nothing. kDataLoss if it is never seen whole (a wrong owner).
Result<std::string> ReadVote(const VoteArea& area);

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_VOTE_PAGE_H_
