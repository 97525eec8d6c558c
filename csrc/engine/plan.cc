#include "engine/plan.h"

#include "engine/cut.h"

namespace elastates {
namespace {

Status Invalid(const std::string& what) { return Status(StatusCode::kInvalidArgument, "plan: " + what); }

Status ValidateSegments(const SnapshotPlan& plan) {
  uint64_t at = plan.header.size();
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const Segment& segment = plan.segments[i];
    const std::string name = "segment " + std::to_string(i);
    if (segment.file_offset != at) {
      return Invalid(name + " begins at " + std::to_string(segment.file_offset) +
                     ", the one before ends at " + std::to_string(at));
    }
    if (segment.data == nullptr && segment.size_bytes > 0) return Invalid(name + " has no data");
    if (segment.group >= plan.num_groups) {
      return Invalid(name + " is of group " + std::to_string(segment.group) + ", num_groups is " +
                     std::to_string(plan.num_groups));
    }
    at += segment.size_bytes;
  }
  if (at != plan.file_size) {
    return Invalid("segments end at " + std::to_string(at) + ", the file at " +
                   std::to_string(plan.file_size));
  }
  return Status::Ok();
}

Status ValidateExtents(const SnapshotPlan& plan, uint64_t block_bytes) {
  uint64_t at = plan.header.size();
  for (size_t i = 0; i < plan.extent_ends.size(); ++i) {
    const uint64_t end = plan.extent_ends[i];
    const std::string range =
        "extent " + std::to_string(i) + " [" + std::to_string(at) + ", " + std::to_string(end) + ")";
    if (end <= at) return Invalid(range + " is empty");
    if (at / block_bytes != (end - 1) / block_bytes) {
      return Invalid(range + " crosses a chunk border; chunks have " + std::to_string(block_bytes) +
                     " bytes");
    }
    at = end;
  }
  if (at != plan.file_size) {
    return Invalid("extents end at " + std::to_string(at) + ", the file at " +
                   std::to_string(plan.file_size));
  }
  return Status::Ok();
}

// Writes cover runs of extents, so what O_DIRECT asks of a write is asked of the borders.
Status ValidateBase(const SnapshotPlan& plan) {
  if (plan.base == nullptr) return Status::Ok();
  const size_t num_extents = plan.extent_ends.size();
  if (plan.base->key != plan.content_key) return Invalid("the base has another key");
  if (plan.base->contents.size() != num_extents || plan.base->crcs.size() != num_extents) {
    return Invalid("the base has " + std::to_string(plan.base->contents.size()) + " extents, the file " +
                   std::to_string(num_extents));
  }
  uint64_t border = plan.header.size();
  for (size_t i = 0; i < num_extents; border = plan.extent_ends[i++]) {
    if (border % kFileAlignment != 0) {
      return Invalid("extent " + std::to_string(i) + " of a delta begins at " + std::to_string(border) +
                     ", no multiple of 4096");
    }
  }
  return Status::Ok();
}

}  // namespace

Status ValidatePlan(const SnapshotPlan& plan, uint64_t block_bytes) {
  if (plan.file_size == 0) return Invalid("the file would be empty");
  Status status = ValidateSegments(plan);
  if (status.ok()) status = ValidateExtents(plan, block_bytes);
  return status.ok() ? ValidateBase(plan) : status;
}

}  // namespace elastates
