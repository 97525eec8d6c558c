// The write queue on io_uring: one thread keeps up to `depth` writes in the kernel and answers them.
//
// The thread owns the ring; nobody else touches it, so it needs no lock. It sleeps in the kernel until a
// write ends or a request comes: Submit() and Close() write to an eventfd that the ring polls.
#include "storage/write_queue.h"

#ifndef ELASTATES_WITH_URING

namespace elastates {

Result<std::unique_ptr<WriteQueue>> MakeUringWriteQueue(int) {
  return Status(StatusCode::kInvalidArgument,
                "no io_uring: this build of elastates was made without liburing");
}

}  // namespace elastates

#else

#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/thread.h"
#include "storage/owned_fd.h"
#include "storage/syscalls.h"

namespace elastates {
namespace {

// A request with the state of its write. Lives in one slot until it is answered.
struct Operation {
  WriteRequest request;
  PendingWrite pending;
  WriteCall call;
  uint64_t ticket;  // of the recording
};

class UringWriteQueue final : public WriteQueue {
 public:
  explicit UringWriteQueue(int depth) : slots_(std::clamp(depth, 1, 256)) {
    for (Operation& slot : slots_) free_.push_back(&slot);
  }
  ~UringWriteQueue() override { Close(); }

  Status Start() {
    wake_ = OwnedFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_) return Status::FromErrno(errno, "creating an eventfd");
    // One place more than there are slots, for the poll of the eventfd: submission never finds the ring full.
    const int result = io_uring_queue_init(static_cast<unsigned>(slots_.size()) + 1, &ring_, 0);
    if (result < 0) return Status::FromErrno(-result, "setting up io_uring");
    if (!CanWrite()) {
      io_uring_queue_exit(&ring_);
      return Status::FromErrno(EOPNOTSUPP, "asking io_uring for its write operation");
    }
    thread_ = NamedThread("ds-uring-0", [this] { Work(); });
    return Status::Ok();
  }

  void Submit(WriteRequest request) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!closed_) {
        arrived_.push_back(std::move(request));
        Wake();
        return;
      }
    }
    request.done(Status(StatusCode::kCancelled, "the write queue is closed"));
  }

  void Close() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
      if (wake_) Wake();
    }
    std::lock_guard<std::mutex> lock(join_mutex_);  // two threads may close at a time, one joins
    thread_.Join();
  }

  const char* name() const override { return "io_uring"; }

 private:
  void Wake() {
    const uint64_t one = 1;
    // An eventfd takes every write short of 2^64 unread ones.
    [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof(one));
  }

  void Work() {
    ArmWake();
    for (;;) {
      StartArrived();
      if (num_in_flight() == 0 && Drained()) break;
      if (const int result = io_uring_submit_and_wait(&ring_, 1); result < 0 && !IsTransient(result)) {
        return Break(Status::FromErrno(-result, "submitting to io_uring"));
      }
      Reap();
    }
    io_uring_queue_exit(&ring_);
  }

  bool CanWrite() {  // Linux 5.6 and later
    io_uring_probe* probe = io_uring_get_probe_ring(&ring_);
    if (probe == nullptr) return false;
    const bool supported = io_uring_opcode_supported(probe, IORING_OP_WRITE) != 0;
    io_uring_free_probe(probe);
    return supported;
  }

  static bool IsTransient(int result) { return result == -EINTR || result == -EAGAIN || result == -EBUSY; }
  size_t num_in_flight() const { return slots_.size() - free_.size(); }

  bool Drained() {
    std::lock_guard<std::mutex> lock(mutex_);
    return closed_ && arrived_.empty();
  }

  // A poll and not a read: the kernel must not hold an address of ours when the ring is torn down.
  void ArmWake() {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    io_uring_prep_poll_add(entry, wake_.get(), POLLIN);
    io_uring_sqe_set_data(entry, nullptr);
  }

  // Afterwards nothing waits, or no slot is free.
  void StartArrived() {
    while (!free_.empty()) {
      Operation* slot = free_.back();
      if (!TakeArrived(&slot->request)) return;
      free_.pop_back();
      const WriteRequest& request = slot->request;
      slot->pending = {request.data, request.length, request.offset};
      Continue(slot, request.sink->Check(slot->pending));
    }
  }

  bool TakeArrived(WriteRequest* request) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (arrived_.empty()) return false;
    *request = std::move(arrived_.front());
    arrived_.pop_front();
    return true;
  }

  // The next step of a write: an answer if it is over, a system call for the ring if not.
  void Continue(Operation* slot, Status status) {
    while (status.ok() && !FileSink::IsDone(slot->pending)) {
      FileSink* sink = slot->request.sink;
      slot->call = sink->Next(slot->pending);
      const auto injected = sys::InterceptWrite(sink->fd(), &slot->call.length);
      if (!injected) return Enqueue(slot);
      status = sink->Advance(&slot->pending, slot->call, *injected);
    }
    Answer(slot, std::move(status));
  }

  void Enqueue(Operation* slot) {
    const WriteCall& call = slot->call;
    slot->ticket = sys::BeginWrite(slot->request.sink->fd(), call.data, call.length, call.offset);
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    io_uring_prep_write(entry, slot->request.sink->fd(), call.data, static_cast<unsigned>(call.length),
                        call.offset);
    io_uring_sqe_set_data(entry, slot);
  }

  void Answer(Operation* slot, Status status) {
    // The slot first: `done` lets go of the arena block, and with it comes the next request.
    const std::function<void(Status)> done = std::move(slot->request.done);
    free_.push_back(slot);
    done(std::move(status));
  }

  void Reap() {
    io_uring_cqe* completion;
    uint64_t wake_count;
    while (io_uring_peek_cqe(&ring_, &completion) == 0) {
      auto* slot = static_cast<Operation*>(io_uring_cqe_get_data(completion));
      const int result = completion->res;
      io_uring_cqe_seen(&ring_, completion);
      if (slot == nullptr) {
        (void)!read(wake_.get(), &wake_count, sizeof(wake_count));
        ArmWake();
      } else {
        sys::EndWrite(slot->ticket, result);
        Continue(slot, slot->request.sink->Advance(&slot->pending, slot->call, result));
      }
    }
  }

  // The ring is of no more use (out of kernel memory, or a bug of ours): everything is answered with the
  // reason.
  void Break(const Status& status) {
    io_uring_queue_exit(&ring_);
    for (Operation& slot : slots_) {
      if (std::find(free_.begin(), free_.end(), &slot) == free_.end()) Answer(&slot, status);
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    for (WriteRequest request; TakeArrived(&request);) request.done(status);
  }

  OwnedFd wake_;
  std::mutex mutex_;
  std::deque<WriteRequest> arrived_;  // guarded by mutex_
  bool closed_ = false;               // guarded by mutex_

  io_uring ring_;  // this and what follows: the thread's alone, once it runs
  std::vector<Operation> slots_;
  std::vector<Operation*> free_;

  std::mutex join_mutex_;
  NamedThread thread_;  // joined under join_mutex_
};

}  // namespace

Result<std::unique_ptr<WriteQueue>> MakeUringWriteQueue(int depth) {
  auto queue = std::make_unique<UringWriteQueue>(depth);
  if (Status status = queue->Start(); !status.ok()) return status;
  return std::unique_ptr<WriteQueue>(std::move(queue));
}

}  // namespace elastates

#endif  // ELASTATES_WITH_URING
