// ProcessWatch: tells once, on the loop's thread, that a process of this host has ended.
#ifndef ELASTATES_COMM_LINKS_PROCESS_WATCH_H_
#define ELASTATES_COMM_LINKS_PROCESS_WATCH_H_

#include <functional>
#include <utility>

#include "comm/links/event_loop.h"

namespace elastates {

class ProcessWatch : public EventLoop::Handler {
 public:
  // `pidfd`: borrowed, and open for longer than this lives.
  ProcessWatch(EventLoop* loop, int pidfd, std::function<void()> on_end)
      : loop_(loop), pidfd_(pidfd), on_end_(std::move(on_end)) {}
  ~ProcessWatch() override { Stop(); }

  Status Start() { return loop_->Watch(pidfd_, EPOLLIN, this); }
  void Stop() { loop_->Unwatch(pidfd_, this); }
  void OnReady(uint32_t) override {
    Stop();
    on_end_();
  }

 private:
  EventLoop* const loop_;
  const int pidfd_;
  const std::function<void()> on_end_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_PROCESS_WATCH_H_
