// How errors name lost members: for people in front, for elaswave.lost() behind.
#ifndef ELASTATES_COMM_LOSS_TEXT_H_
#define ELASTATES_COMM_LOSS_TEXT_H_

#include <string>
#include <vector>

#include "comm/group.h"

namespace elastates {

// "lost rank 2 (pid 4711 on host-key): <why> [elastic epoch 3, lost ranks 2]".
std::string DescribeLoss(const View& view, const std::vector<int>& ranks, const std::string& why);

// "2, 5".
std::string JoinRanks(const std::vector<int>& ranks);

}  // namespace elastates

#endif  // ELASTATES_COMM_LOSS_TEXT_H_
