// What an agreement decides: who sits in the next view, in which order, and what each of them brought along.
#ifndef ELASTATES_COMM_VIEW_DECISION_H_
#define ELASTATES_COMM_VIEW_DECISION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/group.h"
#include "comm/member.h"

namespace elastates {

struct Seat {
  static constexpr int kJoined = -1;

  int old_rank = kJoined;  // in the view before; kJoined: was not in it
  Member member;           // of old members the id alone is told, their view has the rest
  std::string payload;
};

struct Decision {
  uint32_t epoch = 0;  // of the view that it makes
  std::vector<Seat>
      seats;  // in the order of the new ranks: old members as they were, joined ones behind them

  bool Includes(MemberId id) const;
};

std::string Encode(const Decision& decision);
Result<Decision> DecodeDecision(const std::string& bytes);

// The view that `decision` makes of the one before it; kInvalidArgument if it does not follow from it.
Result<View> NextView(const View& before, const Decision& decision);

}  // namespace elastates

#endif  // ELASTATES_COMM_VIEW_DECISION_H_
