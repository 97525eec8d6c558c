#include "comm/links/fork_guard.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace elastates::fork_guard {
namespace {

// More than a process has links; a descriptor beyond it is merely inherited.
constexpr size_t kMaxFds = 1 << 16;
constexpr size_t kBits = 64;
std::atomic<uint64_t> guarded[kMaxFds / kBits];

void CloseAll() {
  for (size_t word = 0; word < kMaxFds / kBits; ++word) {
    const uint64_t bits = guarded[word].exchange(0);
    for (size_t bit = 0; bit < kBits; ++bit)
      if (bits >> bit & 1) close(static_cast<int>(word * kBits + bit));
  }
}

uint64_t BitOf(int fd) { return uint64_t{1} << (static_cast<size_t>(fd) % kBits); }

}  // namespace

void Add(int fd) {
  static const int registered = pthread_atfork(nullptr, nullptr, &CloseAll);
  if (registered == 0 && static_cast<size_t>(fd) < kMaxFds)
    guarded[static_cast<size_t>(fd) / kBits].fetch_or(BitOf(fd));
}

void Remove(int fd) {
  if (static_cast<size_t>(fd) < kMaxFds) guarded[static_cast<size_t>(fd) / kBits].fetch_and(~BitOf(fd));
}

}  // namespace elastates::fork_guard
