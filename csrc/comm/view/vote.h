// Votes: what a member has promised and accepted in an agreement, kept where its death does not erase it.
#ifndef ELASTATES_COMM_VIEW_VOTE_H_
#define ELASTATES_COMM_VIEW_VOTE_H_

#include <cstdint>
#include <string>

#include "base/status.h"

namespace elastates {

// Attempts to decide are ordered by ballot: by round, then by the rank of the leader. 0 is below all.
using Ballot = uint64_t;

inline Ballot MakeBallot(uint32_t round, int leader) {
  return Ballot{round} << 32 | static_cast<uint32_t>(leader);
}
inline uint32_t RoundOf(Ballot ballot) { return static_cast<uint32_t>(ballot >> 32); }
inline int LeaderOf(Ballot ballot) { return static_cast<int>(ballot & 0xffffffffu); }

struct Vote {
  uint32_t epoch = 0;    // the epoch whose end is voted on
  Ballot promised = 0;   // nothing below it will be accepted any more
  Ballot accepted = 0;   // 0: nothing
  std::string value;     // what was accepted
  std::string decision;  // that opened `epoch`: a laggard learns it from here; empty in the first
};

std::string Encode(const Vote& vote);
Result<Vote> DecodeVote(const std::string& bytes);

// Where a member leaves its vote for others to read if it dies.
class VoteStore {
 public:
  virtual ~VoteStore() = default;
  // When it returns, whoever proves this process dead reads these bytes, or later ones.
  virtual Status Write(const std::string& bytes) = 0;
};

// For members whose memory nobody can read: their deaths are proven without a vote.
class ForgetfulVoteStore : public VoteStore {
 public:
  Status Write(const std::string&) override { return Status::Ok(); }
};

}  // namespace elastates

#endif  // ELASTATES_COMM_VIEW_VOTE_H_
