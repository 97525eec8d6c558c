// Listener: accepts on one listening socket and hands on what comes.
#ifndef ELASTATES_COMM_LINKS_LISTENER_H_
#define ELASTATES_COMM_LINKS_LISTENER_H_

#include <cerrno>
#include <functional>
#include <utility>

#include "comm/links/event_loop.h"
#include "comm/links/socket.h"

namespace elastates {

class Listener : public EventLoop::Handler {
 public:
  Listener(EventLoop* loop, Socket socket, std::function<void(Socket)> on_accepted)
      : loop_(loop), socket_(std::move(socket)), on_accepted_(std::move(on_accepted)) {}
  ~Listener() override {
    loop_->Unwatch(socket_.get(), this);
    if (pauses_) loop_->Drop(resume_);
  }

  Status Start() { return loop_->Watch(socket_.get(), EPOLLIN, this); }

  void OnReady(uint32_t) override {
    for (int i = 0; i < kMaxAcceptsPerTurn; ++i) {
      const int fd = Accept(socket_);
      if (fd == -EAGAIN) return;
      if (fd >= 0) {
        on_accepted_(Socket(fd));
      } else if (fd == -EMFILE || fd == -ENFILE || fd == -ENOBUFS || fd == -ENOMEM) {
        return Pause();
      }  // else: a connection that was gone before we came to it
    }
  }

 private:
  static constexpr int kMaxAcceptsPerTurn = 32;
  static constexpr double kPause_s = 0.1;

  // The process is out of descriptors: without a pause the loop would do nothing but try.
  void Pause() {
    loop_->Unwatch(socket_.get(), this);
    pauses_ = true;
    resume_ = loop_->RunAfter(kPause_s, [this] {
      pauses_ = false;
      if (!Start().ok()) Pause();
    });
  }

  EventLoop* const loop_;
  const Socket socket_;
  const std::function<void(Socket)> on_accepted_;
  bool pauses_ = false;
  EventLoop::TimerId resume_{};
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_LISTENER_H_
