#include "storage/recording.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <utility>

namespace elastates {
namespace {

struct State {
  std::mutex mutex;
  bool keeps_log = false;  // guarded by mutex, as all of this
  std::vector<FileOperation> log;
  uint64_t first_ticket = 1;  // of log[0]: tickets of a former recording are not this one's
  uint64_t last_ns = 0;
  uint64_t until_death = 0;  // operations that may still begin, and the deadly one; 0: no death is set
};

State& TheState() {
  static State* state = new State;  // never destroyed: threads may still write while the process exits
  return *state;
}

// REQUIRES, as all below: the caller holds the mutex.
uint64_t Now(State* state) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  const uint64_t now_ns =
      static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  state->last_ns = std::max(now_ns, state->last_ns + 1);
  return state->last_ns;
}

void Forget(State* state) {
  state->first_ticket += state->log.size();
  state->log.clear();
}

void Watch(State* state) {
  recording::is_on.store(state->keeps_log || state->until_death != 0, std::memory_order_relaxed);
}

void CountDown(State* state) {
  if (state->until_death == 0 || --state->until_death > 0) return;
  kill(getpid(), SIGKILL);
  for (;;) pause();  // the signal may reach another thread first; this operation must not begin
}

}  // namespace

void StartRecording() {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  Forget(&state);
  state.keeps_log = true;
  Watch(&state);
}

std::vector<FileOperation> TakeRecording() {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  return state.log;
}

void StopRecording() {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  Forget(&state);
  state.keeps_log = false;
  Watch(&state);
}

void RecordMark(const std::string& text) {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.keeps_log) return;
  FileOperation mark;
  mark.op = "mark";
  mark.path = text;
  mark.began_ns = mark.ended_ns = Now(&state);
  state.log.push_back(std::move(mark));
}

void DieBefore(uint64_t nth) {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  state.until_death = nth;
  Watch(&state);
}

namespace recording {

uint64_t Begin(FileOperation operation) {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  CountDown(&state);
  if (!state.keeps_log) return 0;
  operation.began_ns = Now(&state);
  state.log.push_back(std::move(operation));
  return state.first_ticket + state.log.size() - 1;
}

void End(uint64_t ticket, int64_t result) {
  State& state = TheState();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (ticket < state.first_ticket) return;
  FileOperation& operation = state.log[ticket - state.first_ticket];
  operation.result = result;
  operation.ended_ns = Now(&state);
}

}  // namespace recording
}  // namespace elastates
