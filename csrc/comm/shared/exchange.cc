#include "comm/shared/exchange.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "comm/shared/stream_copy.h"

namespace elastates {

// What a member is about to do; no padding, so that two can be compared as bytes.
struct Exchange::Post {
  uint64_t sequence;
  uint32_t kind, root, type, reduction;
  uint64_t lengths;     // a digest of those that all members know
  uint64_t num_rounds;  // that this member needs
};

namespace {

constexpr size_t kPostBytes = 128;
constexpr size_t kCacheBytes = 4 << 20;  // what all processes show in a round: two cores' second-level caches
constexpr size_t kLeastPieceBytes = 256 << 10;
constexpr size_t kMostPieceBytes = 2 << 20;
constexpr size_t kStreamBytes = 32 << 20;
constexpr size_t kReadBytes = 1 << 20;  // what is read of another's memory before looking whether to go on
constexpr size_t kLengthsOffset = kWindowBytes - kMaxLocalMembers * sizeof(uint64_t) - kPostBytes;  // of data
static_assert(kMostPieceBytes + kMostPieceBytes / 2 + 64 <= kLengthsOffset, "with the sums of half");

size_t TotalCount(const std::vector<ElementSpan>& pieces) {
  size_t count = 0;
  for (const ElementSpan& piece : pieces) count += piece.count;
  return count;
}

// FNV-1a over the counts.
uint64_t DigestOf(const std::vector<ElementSpan>& pieces) {
  uint64_t digest = 14695981039346656037u;
  for (const ElementSpan& piece : pieces) digest = (digest ^ piece.count) * 1099511628211u;
  return digest;
}

uint64_t KnownLengths(const Collective& collective) {
  switch (collective.kind) {
    case CollectiveKind::kBroadcast:
    case CollectiveKind::kAllGather:
      return DigestOf(collective.out);
    case CollectiveKind::kAllReduce:
    case CollectiveKind::kReduce:
    case CollectiveKind::kReduceScatter:
      return DigestOf(collective.in);
    default:
      return 0;  // each pair of members knows its own
  }
}

std::string Describe(uint32_t kind, uint32_t type, uint32_t root) {
  if (kind > static_cast<uint32_t>(CollectiveKind::kBarrier) ||
      type > static_cast<uint32_t>(DataType::kComplex128)) {
    return "something unknown";
  }
  return std::string(NameOf(static_cast<CollectiveKind>(kind))) + " of " +
         NameOf(static_cast<DataType>(type)) + ", root " + std::to_string(root);
}

}  // namespace

KeepWaiting PatienceOf(Operation& op) {
  return [&op](int rank) {
    const Status status = op.Check();
    return status.ok() ? op.CheckPeer(rank) : status;
  };
}

Exchange::Exchange(Board& board, const std::vector<std::shared_ptr<Neighbour>>& members, Operation& op,
                   const Collective& collective)
    : board_(board),
      members_(members),
      op_(op),
      collective_(collective),
      element_bytes_(SizeOf(collective.type)),
      streams_(TotalCount(collective.out) * element_bytes_ >= kStreamBytes) {}

size_t Exchange::common_count() const {
  const size_t piece_bytes = kCacheBytes / static_cast<size_t>(size());
  return std::clamp(piece_bytes, kLeastPieceBytes, kMostPieceBytes) / element_bytes_;
}

size_t Exchange::part_count() const {
  return std::max<size_t>(common_count() / static_cast<size_t>(size()) / 64 * 64, 64);
}

char* Exchange::window(size_t begin) const { return board_.window() + kPostBytes + begin * element_bytes_; }

const char* Exchange::window_of(int rank, size_t begin) const {
  return board_.window_of(rank) + kPostBytes + begin * element_bytes_;
}

void Exchange::CopyOut(void* target, const char* source, size_t size_bytes) const {
  if (streams_) {
    StreamCopy(target, source, size_bytes);
  } else if (size_bytes > 0) {
    std::memcpy(target, source, size_bytes);
  }
}

void Exchange::ShowLength(int part, size_t count) {
  const uint64_t length = count;
  std::memcpy(board_.window() + kPostBytes + kLengthsOffset + part * sizeof(length), &length, sizeof(length));
}

Status Exchange::CheckLength(int from, int part, size_t expected) const {
  uint64_t length;
  std::memcpy(&length, board_.window_of(from) + kPostBytes + kLengthsOffset + part * sizeof(length),
              sizeof(length));
  if (length == expected) return Status::Ok();
  return Status(StatusCode::kInvalidArgument,
                "rank " + std::to_string(from) + " has " + std::to_string(length) + " elements for rank " +
                    std::to_string(rank()) + ", which expects " + std::to_string(expected));
}

// The member has been seen in this step, so its memory is what it said it is unless it has failed since.
Status Exchange::Read(int rank, uint64_t address, void* target, size_t size_bytes) const {
  char* to = static_cast<char*>(target);
  for (size_t done = 0; done < size_bytes; done += kReadBytes) {
    const size_t block_bytes = std::min(kReadBytes, size_bytes - done);
    Status status = members_[rank]->memory->Read(address + done, to + done, block_bytes);
    if (status.code() == StatusCode::kPeerLost) return board_.AwaitReason(rank, PatienceOf(op_));
    if (status.ok()) status = board_.ConfirmMemory(rank, PatienceOf(op_));
    if (!status.ok()) return status;
  }
  return Status::Ok();
}

Status Exchange::Run(uint64_t num_rounds, const Show& show, const Take& take) {
  const Post own = OwnPost(num_rounds);
  std::memcpy(board_.window(), &own, sizeof(own));
  const KeepWaiting check = PatienceOf(op_);
  for (uint64_t round = 0; round < std::max<uint64_t>(num_rounds, 1); ++round) {
    show(round);
    Status status = board_.Meet(check);
    if (status.ok() && round == 0) status = ReadPosts(own, &num_rounds);
    if (status.ok()) status = take(round);
    if (status.ok()) status = ConfirmAll();
    if (!status.ok()) return status;
  }
  return Status::Ok();
}

Exchange::Post Exchange::OwnPost(uint64_t num_rounds) const {
  return Post{op_.sequence(),
              static_cast<uint32_t>(collective_.kind),
              static_cast<uint32_t>(collective_.root),
              static_cast<uint32_t>(collective_.type),
              static_cast<uint32_t>(collective_.reduction.kind),
              KnownLengths(collective_),
              num_rounds};
}

// Every member reads every post: if two differ, all fail.
Status Exchange::ReadPosts(const Post& own, uint64_t* num_rounds) const {
  for (int rank = 0; rank < size(); ++rank) {
    Post post;
    std::memcpy(&post, board_.window_of(rank), sizeof(post));
    *num_rounds = std::max(*num_rounds, post.num_rounds);
    post.num_rounds = own.num_rounds;
    if (std::memcmp(&post, &own, sizeof(post)) == 0) continue;
    return Status(StatusCode::kInvalidArgument,
                  "operation " + std::to_string(own.sequence) + " is " +
                      Describe(own.kind, own.type, own.root) + " on rank " + std::to_string(this->rank()) +
                      " but operation " + std::to_string(post.sequence) + ", " +
                      Describe(post.kind, post.type, post.root) + ", on rank " + std::to_string(rank) +
                      (post.lengths != own.lengths ? "; lengths differ" : "") +
                      ": all ranks must call the same ones in the same order");
  }
  return Status::Ok();
}

Status Exchange::ConfirmAll() const {
  for (int rank = 0; rank < size(); ++rank) {
    Status confirmed = board_.Confirm(rank);
    if (!confirmed.ok()) return confirmed;
  }
  return Status::Ok();
}

}  // namespace elastates
