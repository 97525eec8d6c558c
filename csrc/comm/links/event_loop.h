// EventLoop: one thread that waits for descriptors (epoll), for times, and for what other threads post to it.
//
// Owned by its pool. Post() may be called from any thread; all else on the loop's own thread, or before it
// runs. Everything it calls must not block.
#ifndef ELASTATES_COMM_LINKS_EVENT_LOOP_H_
#define ELASTATES_COMM_LINKS_EVENT_LOOP_H_

#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "storage/owned_fd.h"

namespace elastates {

class EventLoop {
 public:
  using Clock = std::chrono::steady_clock;
  using Task = std::function<void()>;
  using TimerId = std::pair<Clock::time_point, uint64_t>;

  class Handler {
   public:
    virtual ~Handler() = default;
    virtual void OnReady(uint32_t events) = 0;  // EPOLLIN, EPOLLOUT, ...
  };

  EventLoop() = default;
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  Status Open();

  // Runs until Stop(), calling `after_tasks` whenever all that was posted has been done.
  void Run(const Task& after_tasks);
  void Stop() { stopped_ = true; }
  bool IsOnThread() const { return thread_.load() == std::this_thread::get_id(); }

  void Post(Task task);
  // Once Run() has returned: what was posted and not done is done now, what is posted later at once, on the
  // thread that posts it.
  void Close();

  // Level-triggered unless EPOLLET is among the events; null: to be woken is all. REQUIRES: Unwatch() before
  // `fd` is closed.
  Status Watch(int fd, uint32_t events, Handler* handler);
  Status Rewatch(int fd, uint32_t events, Handler* handler);
  void Unwatch(int fd, Handler* handler);  // no call comes any more, not even one that was due

  TimerId RunAt(Clock::time_point when, Task task);
  TimerId RunAfter(double delay_s, Task task, Clock::time_point from = Clock::now());
  void Drop(const TimerId& timer) { timers_.erase(timer); }

  // Destroyed once nobody on the stack can be using it.
  void Discard(std::unique_ptr<Handler> handler) { discarded_.push_back(std::move(handler)); }

 private:
  void RunTasks();
  void RunDueTimers();
  int MillisecondsToWait() const;
  void Wait();

  OwnedFd epoll_, wakeup_;
  bool stopped_ = false;
  std::map<TimerId, Task> timers_;
  uint64_t next_timer_ = 0;
  std::vector<std::unique_ptr<Handler>> discarded_;
  std::array<epoll_event, 64> events_;
  int event_ = 0, num_events_ = 0;  // the one being handled, and how many there are

  std::atomic<std::thread::id> thread_{};
  std::mutex mutex_;
  std::vector<Task> tasks_;  // guarded by mutex_
  bool closed_ = false;      // guarded by mutex_
  std::vector<Task> taken_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_EVENT_LOOP_H_
