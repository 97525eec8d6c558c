// CRC32C (Castagnoli): the checksum of every extent on disk.
//
// Pure functions, any thread. The fastest version for this CPU is chosen once, at first use.
#ifndef ELASTATES_BASE_CRC32C_H_
#define ELASTATES_BASE_CRC32C_H_

#include <cstddef>
#include <cstdint>

namespace elastates {

// The checksum of the bytes that `seed` already covers followed by these; 0 covers none.
uint32_t Crc32c(const void* data, size_t size_bytes, uint32_t seed = 0);

// Crc32c(a ++ b) from the two checksums and the length of b, in O(log(size)) steps.
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t size_b_bytes);

// The table-driven version that every CPU can run; Crc32c() falls back to it.
uint32_t Crc32cPortable(const void* data, size_t size_bytes, uint32_t seed = 0);

}  // namespace elastates

#endif  // ELASTATES_BASE_CRC32C_H_
