#include "comm/loss_text.h"

namespace elastates {

std::string JoinRanks(const std::vector<int>& ranks) {
  std::string text;
  for (int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return text;
}

std::string DescribeLoss(const View& view, const std::vector<int>& ranks, const std::string& why) {
  std::string names;
  for (int rank : ranks) {
    const Member& member = view.members[rank];
    names += (names.empty() ? "" : ", ") + std::to_string(rank) + " (pid " + std::to_string(member.pid) +
             " on " + member.host.substr(0, member.host.find('/')) + ")";
  }
  return std::string("lost rank") + (ranks.size() == 1 ? " " : "s ") + names + ": " + why +
         " [elastic epoch " + std::to_string(view.epoch) + ", lost ranks " + JoinRanks(ranks) + "]";
}

}  // namespace elastates
