#include "comm/shared/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <utility>

#include "comm/shared/futex.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif

namespace elastates {
namespace {

Status SystemError(const std::string& what) { return Status::FromErrno(errno, what); }

constexpr uint32_t kMaxOpenings = (uint32_t{1} << 31) - 1;  // there is a flag beside it in greetings

uint64_t RandomValue() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// No process can cut it short under its readers, and, since Linux 5.1, none can map it writable from now on.
Status Seal(int fd) {
  constexpr int kSize = F_SEAL_SHRINK | F_SEAL_GROW;
  if (fcntl(fd, F_ADD_SEALS, kSize | F_SEAL_FUTURE_WRITE) == 0) return Status::Ok();
  if (errno == EINVAL && fcntl(fd, F_ADD_SEALS, kSize) == 0) return Status::Ok();
  return SystemError("seal the shared segment");
}

Result<OwnedFd> ReopenForReading(const OwnedFd& fd) {
  OwnedFd reader(open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), O_RDONLY | O_CLOEXEC));
  if (!reader) return SystemError("open the shared segment for reading (is /proc mounted?)");
  return reader;
}

// Where Yama allows a process to be read by its ancestors alone, allow the launcher and what it started.
void AllowSiblingsToRead() { prctl(PR_SET_PTRACER, getppid(), 0, 0, 0); }

}  // namespace

Result<std::unique_ptr<SharedSegment>> SharedSegment::Create(MemberId self) {
  OwnedFd writer(memfd_create("elastates-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!writer) return SystemError("create the shared segment");
  if (ftruncate(writer.get(), kSegmentBytes) != 0) return SystemError("size the shared segment");
  void* base = mmap(nullptr, kSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED, writer.get(), 0);
  if (base == MAP_FAILED) return SystemError("map the shared segment");
  Status sealed = Seal(writer.get());
  Result<OwnedFd> reader = sealed.ok() ? ReopenForReading(writer) : Result<OwnedFd>(sealed);
  if (!reader.ok()) {
    munmap(base, kSegmentBytes);
    return reader.status();
  }
  AllowSiblingsToRead();
  return std::unique_ptr<SharedSegment>(
      new SharedSegment(std::move(reader).value(), static_cast<char*>(base), self));
}

SharedSegment::SharedSegment(OwnedFd fd, char* base, MemberId self)
    : fd_(std::move(fd)), base_(base), probe_value_(new uint64_t(RandomValue())) {
  ControlPage* control = new (base_) ControlPage{};
  new (base_ + kVotesOffset) VoteArea{};
  control->size_bytes = kSegmentBytes;
  control->member = self;
  control->pid = getpid();
  control->probe_address = reinterpret_cast<uint64_t>(probe_value_.get());
  control->probe_value = *probe_value_;
  control->magic = kSegmentMagic;
  for (size_t slot = 0; slot < kNumSlots; ++slot) free_slots_.push_back(slot);
}

SharedSegment::~SharedSegment() { munmap(base_, kSegmentBytes); }

Result<size_t> SharedSegment::OpenSlot(uint64_t group, uint32_t epoch) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_slots_.empty()) {
    return Status(StatusCode::kResourceExhausted,
                  "this process is in " + std::to_string(kNumSlots) +
                      " groups already, the most for which shared memory has room: destroy one first");
  }
  const size_t slot = free_slots_.front();
  free_slots_.pop_front();
  SlotEntry& entry = page()->slots[slot];
  entry.group.store(0);  // nobody finds it before it is whole
  std::memset(window(slot, 0), 0, kMaxLocalMembers * sizeof(uint32_t));
  num_openings_ = num_openings_ % kMaxOpenings + 1;
  entry.progress.store(Progress{num_openings_}.word());
  entry.epoch.store(epoch);
  entry.group.store(group);
  DirectoryChanged();
  return slot;
}

void SharedSegment::CloseSlot(size_t slot) {
  if (getpid() != control().pid) return;  // a forked child that cleans up must not close its parent's
  std::lock_guard<std::mutex> lock(mutex_);
  SlotEntry& entry = page()->slots[slot];
  Progress progress = Progress::Of(entry.progress.load());
  progress.closed = true;
  entry.progress.store(progress.word());
  FutexWakeAll(LowHalf(entry.progress));
  free_slots_.push_back(slot);
  DirectoryChanged();
}

void SharedSegment::Arrive(size_t slot) {
  std::atomic<uint64_t>& word = page()->slots[slot].progress;
  Progress progress = Progress::Of(word.load(std::memory_order_relaxed));
  ++progress.count;
  word.store(progress.word(), std::memory_order_release);
  FutexWakeAll(LowHalf(word));
}

void SharedSegment::GiveUp(size_t slot) {
  if (getpid() != control().pid) return;
  SlotEntry& entry = page()->slots[slot];
  entry.given_up.store(Progress::Of(entry.progress.load()).opening);
  OrderFence();  // whatever is written to that memory comes later
}

void SharedSegment::AnnounceGreeting() { DirectoryChanged(); }

void SharedSegment::DirectoryChanged() {
  page()->directory.fetch_add(1);
  FutexWakeAll(FutexWord(page()->directory));
}

}  // namespace elastates
