#include "comm/shared/vote_page.h"

#include <algorithm>
#include <cstring>

namespace elastates {
namespace {

// Each failure means that the owner completed two more votes meanwhile.
constexpr int kMaxReads = 1000;

bool ReadCopy(const VoteCopy& copy, std::string* bytes) {
  const uint32_t before = copy.version.load(std::memory_order_acquire);
  if (before % 2 != 0) return false;
  bytes->assign(copy.bytes, std::min<size_t>(copy.size_bytes.load(), kVoteBytes));
  OrderFence();
  return copy.version.load(std::memory_order_relaxed) == before;
}

}  // namespace

Status VotePage::Write(const std::string& bytes) {
  if (bytes.size() > kVoteBytes) {
    return Status(StatusCode::kInvalidArgument, "a vote of " + std::to_string(bytes.size()) +
                                                    " bytes; there is room for " +
                                                    std::to_string(kVoteBytes));
  }
  const uint32_t next = 1 - area_->latest.load() % 2;
  VoteCopy& copy = area_->copies[next];
  copy.version.fetch_add(1);
  OrderFence();
  std::memcpy(copy.bytes, bytes.data(), bytes.size());
  copy.size_bytes.store(static_cast<uint32_t>(bytes.size()));
  copy.version.fetch_add(1);
  area_->latest.store(next);
  return Status::Ok();
}

Result<std::string> ReadVote(const VoteArea& area) {
  std::string bytes;
  for (int i = 0; i < kMaxReads; ++i) {
    if (ReadCopy(area.copies[area.latest.load() % 2], &bytes)) return bytes;
  }
  return Status(StatusCode::kDataLoss, "a peer's vote changes faster than it can be read");
}

}  // namespace elastates
