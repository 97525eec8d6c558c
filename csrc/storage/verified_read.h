// ReadVerified: restore's data path. Reads ranges of one data file, verifies them and scatters them into
// memory.
//
// Large aligned O_DIRECT reads go into a few staging buffers; each extent is checksummed in the pass that
// moves its bytes on, so nothing is read twice. Blocks; threads live only for the call. The destinations of
// damaged extents hold damaged bytes afterwards: the caller decides what becomes of them.
#ifndef ELASTATES_STORAGE_VERIFIED_READ_H_
#define ELASTATES_STORAGE_VERIFIED_READ_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace elastates {

// A byte range of the file, [begin, end), and the checksum it was written with.
struct ReadExtent {
  uint64_t begin;
  uint64_t end;
  uint32_t crc;
};

// Bytes [begin, end) of the file go to [dst, dst + end - begin).
struct Scatter {
  uint64_t begin;
  uint64_t end;
  char* dst;
};

// The defaults were measured on a virtual disk and two busy cores: one cold file of 1 GiB, 17 interleaved
// runs, MB/s as best / median. 3 readers of 2 MiB 2705 / 2162, 4 of them 2810 / 1594, 6 of them 2688 / 1595,
// 4 of 4 MiB 2247 / 1430; plain O_DIRECT 2976 / 2365 with one reader of 8 MiB, 2282 / 1495 with four, 2903 /
// 2392 with four of 2 MiB.
struct ReadOptions {
  int num_threads = 3;             // reads in flight: each thread owns one staging buffer
  size_t request_bytes = 2 << 20;  // one read; rounded up to 4096, at most 1 GiB
  bool allow_direct = true;
  bool verify = true;  // false: reads only the pages that hold scattered bytes, and trusts them
};

struct ReadReport {
  std::vector<size_t> damaged_extents;  // indices into `extents`, ascending
  uint64_t bytes_read = 0;              // from the file, padding included
};

// `extents` and `scatters` are sorted and do not overlap among themselves; every scatter lies within the
// extents, one or several that touch. Lists that break this, or leave the file, are refused before anything
// is read. Extents that no scatter touches are not verified, nor read unless they fill a gap of 64 KiB or
// less. A file that is not `file_size` bytes long is kDataLoss.
Result<ReadReport> ReadVerified(const std::string& path, uint64_t file_size,
                                const std::vector<ReadExtent>& extents, const std::vector<Scatter>& scatters,
                                const ReadOptions& options = {});

}  // namespace elastates

#endif  // ELASTATES_STORAGE_VERIFIED_READ_H_
