#include "comm/shared/peer_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

namespace elastates {
namespace {

constexpr size_t kHeadBytes = kWindowsOffset;

Status Refused(MemberId member, const std::string& why) {
  return Status(StatusCode::kInvalidArgument,
                "the shared memory offered by member " + std::to_string(member) + " is refused: " + why);
}

// A file that its owner may shorten would end us with SIGBUS.
Status CheckFile(int fd, MemberId member) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return Refused(member, "it is not a memfd");
  if ((seals & F_SEAL_SHRINK) == 0) return Refused(member, "its size is not sealed");
  struct stat file = {};
  if (fstat(fd, &file) != 0) return Status::FromErrno(errno, "look at a peer's shared segment");
  if (static_cast<uint64_t>(file.st_size) == kSegmentBytes) return Status::Ok();
  return Refused(member, "it has " + std::to_string(file.st_size) + " bytes, not " +
                             std::to_string(kSegmentBytes) + ": both sides must run the same version");
}

Status CheckContent(const ControlPage& control, MemberId member) {
  if (control.magic != kSegmentMagic || control.size_bytes != kSegmentBytes) {
    return Refused(member, "it does not begin like a segment of this version");
  }
  if (control.member == member) return Status::Ok();
  return Refused(member, "it says it belongs to member " + std::to_string(control.member));
}

}  // namespace

Result<std::unique_ptr<PeerSegment>> PeerSegment::Map(int fd, MemberId expected) {
  Status file = CheckFile(fd, expected);
  if (!file.ok()) return file;
  OwnedFd own(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own) return Status::FromErrno(errno, "keep the descriptor of a peer's segment");
  void* base = mmap(nullptr, kHeadBytes, PROT_READ, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return Status::FromErrno(errno, "map a peer's segment");
  std::unique_ptr<PeerSegment> peer(
      new PeerSegment(std::move(own), static_cast<const char*>(base), expected));
  Status content = CheckContent(peer->control(), expected);
  if (!content.ok()) return content;
  return peer;
}

PeerSegment::~PeerSegment() {
  munmap(const_cast<char*>(base_), kHeadBytes);
  for (const char* windows : windows_) {
    if (windows != nullptr) munmap(const_cast<char*>(windows), kSlotBytes);
  }
}

Result<std::optional<PeerSegment::Opening>> PeerSegment::Find(uint64_t group, uint32_t epoch) const {
  for (size_t slot = 0; slot < kNumSlots; ++slot) {
    const SlotEntry& entry = control().slots[slot];
    const Progress progress = Progress::Of(entry.progress.load());
    if (progress.closed || entry.group.load() != group) continue;
    const uint32_t its_epoch = entry.epoch.load();
    if (Progress::Of(entry.progress.load()).opening != progress.opening) continue;  // opened anew meanwhile
    if (its_epoch == epoch) return std::optional<Opening>(Opening{slot, progress.opening});
    if (its_epoch > epoch) {
      return Status(StatusCode::kRevoked, "member " + std::to_string(member_) + " is at epoch " +
                                              std::to_string(its_epoch) + " of the group, this process at " +
                                              std::to_string(epoch));
    }
  }
  return std::optional<Opening>();
}

Result<const char*> PeerSegment::Windows(size_t slot) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (windows_.at(slot) == nullptr) {
    const auto offset = static_cast<off_t>(WindowOffset(slot));
    void* mapped = mmap(nullptr, kSlotBytes, PROT_READ, MAP_SHARED, fd_.get(), offset);
    if (mapped == MAP_FAILED) return Status::FromErrno(errno, "map the windows of a peer");
    windows_[slot] = static_cast<const char*>(mapped);
  }
  return windows_[slot];
}

}  // namespace elastates
