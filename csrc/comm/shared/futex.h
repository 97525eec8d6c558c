// Sleeping until another process changes a word of shared memory, or somebody here wants the sleeper to stop.
//
// Waiting works on read-only mappings. Any thread may call any function.
#ifndef ELASTATES_COMM_SHARED_FUTEX_H_
#define ELASTATES_COMM_SHARED_FUTEX_H_

#include <atomic>
#include <chrono>
#include <cstdint>

namespace elastates {

using WaitClock = std::chrono::steady_clock;

// The low half of a 64-bit word.
inline const uint32_t* LowHalf(const std::atomic<uint64_t>& word) {
  return reinterpret_cast<const uint32_t*>(&word);
}
inline const uint32_t* FutexWord(const std::atomic<uint32_t>& word) {
  return reinterpret_cast<const uint32_t*>(&word);
}

// Sleeps while `*shared` is `seen` and `*stop`, a word of this process, is zero; until `deadline` at the
// latest. May return earlier for no reason: the caller looks again and decides.
void FutexWait(const uint32_t* shared, uint32_t seen, const std::atomic<uint32_t>& stop,
               WaitClock::time_point deadline);

// Wakes all who wait for a shared word, in any process.
void FutexWakeAll(const uint32_t* shared);

// Sets a stop word and wakes those who wait with it.
void FutexStop(std::atomic<uint32_t>* stop);

// Kernels before 5.16 cannot wait for two words at once: there a sleeper looks at its stop word every few
// milliseconds. For tests: do so here too.
void ForceSingleFutexForTesting(bool single);

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_FUTEX_H_
