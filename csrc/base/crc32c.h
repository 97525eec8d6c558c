// CRC32C (Castagnoli): the checksum of every extent on disk.
//
// Pure functions, any thread. The fastest version for this CPU is chosen once, at first use.
#ifndef ELASTATES_BASE_CRC32C_H_
#define ELASTATES_BASE_CRC32C_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace elastates {

// The checksum of the bytes that `seed` already covers followed by these; 0 covers none.
uint32_t Crc32c(const void* data, size_t size_bytes, uint32_t seed = 0);

// Crc32c(a ++ b) from the two checksums and the length of b, in O(log(size)) steps.
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t size_b_bytes);

// One way to compute Crc32c().
struct Crc32cVersion {
  const char* name;
  uint32_t (*run)(const void* data, size_t size_bytes, uint32_t seed);
};

// Every version that this CPU can run, fastest first: Crc32c() is the first one, tests compare them all.
const std::vector<Crc32cVersion>& Crc32cVersions();

}  // namespace elastates

#endif  // ELASTATES_BASE_CRC32C_H_
