// Random bytes from the kernel: ids and nonces that nobody can guess.
#ifndef ELASTATES_COMM_LINKS_RANDOM_H_
#define ELASTATES_COMM_LINKS_RANDOM_H_

#include <sys/random.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace elastates {

// Up to 256 bytes come at once or not at all; a machine without randomness must not go on without secrets.
inline void FillRandom(void* bytes, size_t size_bytes) {
  while (getrandom(bytes, size_bytes, 0) != static_cast<ssize_t>(size_bytes))
    if (errno != EINTR) std::abort();
}

// Never 0.
inline uint64_t RandomId() {
  uint64_t id = 0;
  while (id == 0) FillRandom(&id, sizeof(id));
  return id;
}

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_RANDOM_H_
