// NamedThread: a thread with a name that shows in ps, gdb and py-spy, joined by its owner.
//
// Owned by one object, which calls Join() (idempotent) before it dies. The body must not throw.
#ifndef ELASTATES_BASE_THREAD_H_
#define ELASTATES_BASE_THREAD_H_

#include <pthread.h>

#include <string>
#include <thread>
#include <utility>

namespace elastates {

class NamedThread {
 public:
  NamedThread() = default;
  template <typename Body>
  NamedThread(std::string name, Body body)  // name: at most 15 characters, or Linux refuses it
      : thread_([name = std::move(name), body = std::move(body)]() mutable {
          pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
          body();
        }) {}
  NamedThread(NamedThread&&) = default;
  NamedThread& operator=(NamedThread&&) = default;
  ~NamedThread() { Join(); }

  void Join() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::thread thread_;
};

}  // namespace elastates

#endif  // ELASTATES_BASE_THREAD_H_
