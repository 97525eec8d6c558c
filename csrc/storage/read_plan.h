// PlanReads: which large reads serve a list of scatters. Pure arithmetic: no file, no memory of the caller's.
#ifndef ELASTATES_STORAGE_READ_PLAN_H_
#define ELASTATES_STORAGE_READ_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "storage/verified_read.h"

namespace elastates {

// Bytes of one extent within one read. An extent that lies in several reads has as many parts, in ascending
// order.
struct ReadPart {
  uint64_t begin;
  uint64_t end;
  size_t extent;
};

// One read: [begin, end) of the file, both multiples of 4096, serves parts [first_part, end_part).
struct PlannedRead {
  uint64_t begin;
  uint64_t end;
  size_t first_part;
  size_t end_part;
};

struct ReadPlan {
  std::vector<PlannedRead> reads;
  std::vector<ReadPart> parts;
};

// Validates both lists as ReadVerified() promises. `request_bytes`, a multiple of 4096, bounds each read: no
// read crosses a multiple of it. With `verify` the parts make up every extent that a scatter touches,
// otherwise just the scatters themselves.
Result<ReadPlan> PlanReads(uint64_t file_size, const std::vector<ReadExtent>& extents,
                           const std::vector<Scatter>& scatters, uint64_t request_bytes, bool verify);

}  // namespace elastates

#endif  // ELASTATES_STORAGE_READ_PLAN_H_
