// ChainClock: how an engine's time divides into copying, waiting for storage, and neither.
//
// It *copies* while any copy is under way, and *starves* while nothing is being copied and bytes wait for a
// block because all blocks hold bytes that storage has not taken yet. Who waits for copies takes the
// difference of two readings and knows why. Told twice per chunk, under a mutex of its own. Thread-safe.
#ifndef ELASTATES_ENGINE_CHAIN_CLOCK_H_
#define ELASTATES_ENGINE_CHAIN_CLOCK_H_

#include <chrono>
#include <mutex>

namespace elastates {

class ChainClock {
 public:
  struct Times {
    double copying_s = 0;
    double starved_s = 0;
  };

  void OnCopyBegun() {
    std::lock_guard<std::mutex> lock(mutex_);
    AdvanceLocked();
    ++active_copies_;
  }
  void OnCopyEnded() {
    std::lock_guard<std::mutex> lock(mutex_);
    AdvanceLocked();
    --active_copies_;
  }
  // Whether bytes wait for a block.
  void SetStarved(bool starved) {
    std::lock_guard<std::mutex> lock(mutex_);
    AdvanceLocked();
    starved_ = starved;
  }
  Times times() {
    std::lock_guard<std::mutex> lock(mutex_);
    AdvanceLocked();
    return times_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void AdvanceLocked() {
    const Clock::time_point now = Clock::now();
    const double elapsed_s = std::chrono::duration<double>(now - since_).count();
    since_ = now;
    if (active_copies_ > 0) {
      times_.copying_s += elapsed_s;
    } else if (starved_) {
      times_.starved_s += elapsed_s;
    }
  }

  std::mutex mutex_;
  Clock::time_point since_ = Clock::now();  // guarded by mutex_, like the rest
  int active_copies_ = 0;
  bool starved_ = false;
  Times times_;
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_CHAIN_CLOCK_H_
