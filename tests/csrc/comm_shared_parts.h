// Real processes that share memory, for the native tests: forked, met through a page they have in common.
#ifndef ELASTATES_TESTS_CSRC_COMM_SHARED_PARTS_H_
#define ELASTATES_TESTS_CSRC_COMM_SHARED_PARTS_H_

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "comm/shared/board.h"
#include "comm/shared/neighbours.h"

namespace elastates::testing {

constexpr int kMaxRanks = 16;

inline WaitClock::time_point In(double seconds) {
  return WaitClock::now() +
         std::chrono::duration_cast<WaitClock::duration>(std::chrono::duration<double>(seconds));
}

inline KeepWaiting For(double seconds) {
  return [deadline = In(seconds)](int) {
    if (WaitClock::now() < deadline) return Status::Ok();
    return Status(StatusCode::kDeadlineExceeded, "waited too long");
  };
}
inline KeepWaiting Soon() { return For(60); }  // what must happen, on a slow machine too

// Polls: what is waited for is done by another process.
inline bool Until(const std::function<bool()>& holds) {
  const auto deadline = In(60);
  while (!holds()) {
    if (WaitClock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

struct Meeting {
  std::atomic<int> pids[kMaxRanks];
  std::atomic<int> segment_fds[kMaxRanks];
  std::atomic<uint64_t> marks[kMaxRanks];  // what a test tells between its processes
};

// One of the processes: its segment, and how it finds those of the others.
class Player {
 public:
  Player(Meeting* meeting, int rank, int size) : meeting_(meeting), rank_(rank), size_(size) {
    Result<std::unique_ptr<SharedSegment>> segment = SharedSegment::Create(IdOf(rank));
    CHECK_OK(segment.status());
    segment_ = std::move(segment).value();
    neighbours_ = std::make_unique<Neighbours>(segment_.get(), [this](MemberId id) { return FdOf(id); });
    meeting->segment_fds[rank].store(segment_->fd());
    meeting->pids[rank].store(getpid());
  }

  static MemberId IdOf(int rank) { return 1000 + static_cast<MemberId>(rank); }

  int rank() const { return rank_; }
  int size() const { return size_; }
  SharedSegment& segment() { return *segment_; }
  Neighbours& neighbours() { return *neighbours_; }
  std::atomic<uint64_t>& mark(int i) { return meeting_->marks[i]; }

  std::shared_ptr<Neighbour> Find(int rank) {
    Result<std::shared_ptr<Neighbour>> found = neighbours_->Find(IdOf(rank));
    CHECK_OK(found.status());
    return found.value();
  }

  // A board of these ranks (all if none are named) that is not bound yet.
  std::unique_ptr<Board> OpenBoard(uint64_t group, uint32_t epoch, std::vector<int> ranks = {}) {
    for (int rank = 0; ranks.empty() && rank < size_; ++rank) all_.push_back(rank);
    if (ranks.empty()) ranks.swap(all_);
    std::vector<PeerSegment*> peers;
    int own = 0;
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (ranks[i] == rank_) own = static_cast<int>(i);
      if (ranks[i] != rank_) kept_.push_back(Find(ranks[i]));
      peers.push_back(ranks[i] == rank_ ? nullptr : kept_.back()->segment.get());
    }
    Result<std::unique_ptr<Board>> board = Board::Open(segment_.get(), peers, own, group, epoch);
    CHECK_OK(board.status());
    return std::move(board).value();
  }

 private:
  // As a link's handshake would hand it over.
  int FdOf(MemberId id) {
    const int rank = static_cast<int>(id - IdOf(0));
    if (fds_.count(rank) != 0) return fds_[rank].get();
    CHECK(Until([&] { return meeting_->pids[rank].load() != 0; }));
    const std::string path = "/proc/" + std::to_string(meeting_->pids[rank].load()) + "/fd/" +
                             std::to_string(meeting_->segment_fds[rank].load());
    fds_[rank] = OwnedFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    return fds_[rank].get();
  }

  Meeting* const meeting_;
  const int rank_, size_;
  std::unique_ptr<SharedSegment> segment_;
  std::unique_ptr<Neighbours> neighbours_;
  std::map<int, OwnedFd> fds_;
  std::vector<std::shared_ptr<Neighbour>> kept_;
  std::vector<int> all_;
};

// Forks `size` players; each runs `body` and ends with 0 if all its checks held.
class Players {
 public:
  using Body = std::function<void(Player&)>;

  Players(int size, const Body& body) {
    meeting_ = static_cast<Meeting*>(
        mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    for (int rank = 0; rank < size; ++rank) pids_.push_back(Fork(rank, size, body));
  }
  ~Players() {
    for (pid_t pid : pids_) {
      if (pid > 0) kill(pid, SIGKILL), waitpid(pid, nullptr, 0);
    }
    munmap(meeting_, sizeof(Meeting));
  }

  void Signal(int rank, int signal) { CHECK_EQ(kill(pids_[rank], signal), 0); }
  std::atomic<uint64_t>& mark(int i) { return meeting_->marks[i]; }

  // How the process ended: its exit status, or minus the signal.
  int Wait(int rank) {
    int status = 0;
    CHECK_EQ(waitpid(pids_[rank], &status, 0), pids_[rank]);
    pids_[rank] = -1;
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
  }
  void WaitForAll() {
    for (size_t rank = 0; rank < pids_.size(); ++rank) {
      if (pids_[rank] > 0) CHECK_EQ(Wait(static_cast<int>(rank)), 0);
    }
  }

 private:
  pid_t Fork(int rank, int size, const Body& body) {
    std::fflush(nullptr);
    const pid_t parent = getpid();
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      _exit(Play(rank, size, body));
    }
    return pid;
  }

  int Play(int rank, int size, const Body& body) {
    check::FailedChecks().store(0);  // those of the parent
    try {
      Player player(meeting_, rank, size);
      body(player);
    } catch (const check::TestFailed&) {  // printed
    }
    return check::FailedChecks().load() == 0 ? 0 : 1;
  }

  Meeting* meeting_;
  std::vector<pid_t> pids_;
};

}  // namespace elastates::testing

#endif  // ELASTATES_TESTS_CSRC_COMM_SHARED_PARTS_H_
