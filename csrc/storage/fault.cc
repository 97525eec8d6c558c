#include "storage/fault.h"

#include <fcntl.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

namespace elastates {
namespace {

struct State {
  std::mutex mutex;
  Fault fault;  // guarded by mutex, like the two counts
  int num_seen = 0;
  int num_struck = 0;
  uint64_t generation = 0;  // guarded by mutex: advances when held calls may go on
  std::condition_variable released;
};

std::atomic<bool> armed{false};

State& TheState() {
  static State* state = new State;  // never destroyed: threads may still write while the process exits
  return *state;
}

bool Concerns(const Fault& fault, const char* op, int fd) {
  if (fault.op != op) return false;
  if (!fault.direct_only) return true;
  const int flags = fd < 0 ? 0 : fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_DIRECT) != 0;
}

// REQUIRES: the caller holds the mutex.
void Release(State* state) {
  ++state->generation;
  state->released.notify_all();
}

}  // namespace

void SetFault(Fault fault) {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  state.fault = std::move(fault);
  state.num_seen = state.num_struck = 0;
  armed.store(true, std::memory_order_relaxed);
  Release(&state);
}

void ClearFault() {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  armed.store(false, std::memory_order_relaxed);
  Release(&state);
}

int NumFaultsStruck() {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  return state.num_struck;
}

std::optional<Fault> TakeFault(const char* op, int fd) {
  if (!armed.load(std::memory_order_relaxed)) return std::nullopt;
  State& state = TheState();
  std::unique_lock<std::mutex> lock(state.mutex);
  const Fault& fault = state.fault;
  if (!Concerns(fault, op, fd)) return std::nullopt;
  ++state.num_seen;
  if (state.num_seen < fault.nth || state.num_seen - fault.nth >= fault.times) return std::nullopt;
  ++state.num_struck;
  if (!fault.hold) return fault;
  state.released.wait(lock, [&, held = state.generation] { return state.generation != held; });
  return std::nullopt;
}

}  // namespace elastates
