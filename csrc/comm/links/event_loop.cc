#include "comm/links/event_loop.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>

namespace elastates {

Status EventLoop::Open() {
  epoll_ = OwnedFd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return Status::FromErrno(errno, "making an epoll descriptor");
  wakeup_ = OwnedFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wakeup_) return Status::FromErrno(errno, "making an eventfd");
  // Edge-triggered: every write wakes the thread once, and nothing need be read.
  return Watch(wakeup_.get(), EPOLLIN | EPOLLET, nullptr);
}

void EventLoop::Run(const Task& after_tasks) {
  thread_.store(std::this_thread::get_id());
  while (!stopped_) {
    RunTasks();
    RunDueTimers();
    after_tasks();
    discarded_.clear();
    if (!stopped_) Wait();
  }
}

// The first to post into an empty queue wakes the thread; those after it find it awake.
void EventLoop::Post(Task task) {
  bool was_empty = false;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (closed_) {
      lock.unlock();
      return task();
    }
    was_empty = tasks_.empty();
    tasks_.push_back(std::move(task));
  }
  if (!was_empty || IsOnThread()) return;  // the thread itself looks before it sleeps
  const uint64_t one = 1;
  while (write(wakeup_.get(), &one, sizeof(one)) < 0 && errno == EINTR) continue;
}

void EventLoop::Close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  RunTasks();
  timers_.clear();
  discarded_.clear();
}

void EventLoop::RunTasks() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    taken_.swap(tasks_);
  }
  for (const Task& task : taken_) task();
  taken_.clear();
}

void EventLoop::RunDueTimers() {
  const Clock::time_point now = Clock::now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    const Task task = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    task();
  }
}

// Rounded up: a timer must not be early.
int EventLoop::MillisecondsToWait() const {
  if (timers_.empty()) return -1;
  const double wait_s = std::chrono::duration<double>(timers_.begin()->first.first - Clock::now()).count();
  return static_cast<int>(std::clamp(std::ceil(wait_s * 1e3), 0.0, 1e6));
}

void EventLoop::Wait() {
  int wait_ms = MillisecondsToWait();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!tasks_.empty()) wait_ms = 0;  // posted by the thread itself
  }
  num_events_ = epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()), wait_ms);
  for (event_ = 0; event_ < num_events_; ++event_) {
    const epoll_event& event = events_[static_cast<size_t>(event_)];
    // Null: a wake-up, or unwatched by a handler before it.
    if (event.data.ptr != nullptr) static_cast<Handler*>(event.data.ptr)->OnReady(event.events);
  }
  num_events_ = 0;
}

Status EventLoop::Watch(int fd, uint32_t events, Handler* handler) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = handler;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0) return Status::Ok();
  return Status::FromErrno(errno, "watching a descriptor");
}

Status EventLoop::Rewatch(int fd, uint32_t events, Handler* handler) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = handler;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0) return Status::Ok();
  return Status::FromErrno(errno, "watching a descriptor for other events");
}

void EventLoop::Unwatch(int fd, Handler* handler) {
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);  // fails where it is not watched, which is as well
  for (int i = event_ + 1; i < num_events_; ++i)
    if (events_[static_cast<size_t>(i)].data.ptr == handler)
      events_[static_cast<size_t>(i)].data.ptr = nullptr;
}

EventLoop::TimerId EventLoop::RunAt(Clock::time_point when, Task task) {
  const TimerId id{when, next_timer_++};
  timers_.emplace(id, std::move(task));
  return id;
}

EventLoop::TimerId EventLoop::RunAfter(double delay_s, Task task, Clock::time_point from) {
  const double some_years_s = 1e8;  // more would overflow
  const auto delay = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::clamp(delay_s, 0.0, some_years_s)));
  return RunAt(from + delay, std::move(task));
}

}  // namespace elastates
