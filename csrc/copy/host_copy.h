// CopyAndCrc32c: host memory to host memory and its checksum in one pass, the hot loop of every checkpoint.
//
// Pure function, any thread; the fastest version for this CPU is chosen once, at first use.
#ifndef ELASTATES_COPY_HOST_COPY_H_
#define ELASTATES_COPY_HOST_COPY_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace elastates {

// Copies and returns Crc32c(src, size_bytes, seed). Any alignment. The bytes checksummed are the bytes copied
// only if nobody writes to `src` meanwhile. Every store is visible to whoever synchronises with this thread
// afterwards. REQUIRES: the ranges do not overlap.
uint32_t CopyAndCrc32c(void* dst, const void* src, size_t size_bytes, uint32_t seed = 0);

// One way to do it.
struct CopyVersion {
  const char* name;
  uint32_t (*run)(void* dst, const void* src, size_t size_bytes, uint32_t seed);
};

// Every version that this CPU can run, fastest first: CopyAndCrc32c() is the first one, tests compare them
// all.
const std::vector<CopyVersion>& CopyVersions();

}  // namespace elastates

#endif  // ELASTATES_COPY_HOST_COPY_H_
