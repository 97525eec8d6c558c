#include "storage/read_plan.h"

#include <algorithm>
#include <string>
#include <utility>

namespace elastates {
namespace {

constexpr uint64_t kPageBytes = 4096;
// Reading this much in vain costs less than another request (32 us at 2 GB/s).
constexpr uint64_t kMaxGapBytes = 64 << 10;

std::string Range(const char* what, size_t index, uint64_t begin, uint64_t end) {
  return std::string(what) + " " + std::to_string(index) + ", [" + std::to_string(begin) + ", " +
         std::to_string(end) + ")";
}

Status Refuse(const std::string& message) { return Status(StatusCode::kInvalidArgument, message); }

// Ascending, disjoint, inside the file. Comparisons only, so that nothing can overflow.
template <typename Ranges>
Status CheckRanges(const char* what, const Ranges& ranges, uint64_t file_size) {
  uint64_t previous_end = 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const auto& range = ranges[i];
    if (range.begin > range.end)
      return Refuse(Range(what, i, range.begin, range.end) + " ends before it begins");
    if (range.end > file_size) {
      return Refuse(Range(what, i, range.begin, range.end) + " leaves the file of " +
                    std::to_string(file_size) + " bytes");
    }
    if (range.begin < previous_end) {
      return Refuse(Range(what, i, range.begin, range.end) + " overlaps the one before, which ends at " +
                    std::to_string(previous_end) + ", or is out of order");
    }
    previous_end = range.end;
  }
  return Status::Ok();
}

// Collects the parts in ascending order and cuts them into reads.
class Planner {
 public:
  Planner(uint64_t file_size, uint64_t request_bytes)
      : file_size_(file_size), request_bytes_(request_bytes) {}

  void Add(uint64_t begin, uint64_t end, size_t extent) {
    while (begin < end) {
      const uint64_t window = begin / request_bytes_;
      const uint64_t cut = std::min(end, WindowEnd(window));
      AddWithinWindow({begin, cut, extent}, window);
      begin = cut;
    }
  }

  ReadPlan Finish() && {
    for (PlannedRead& read : plan_.reads) {
      read.begin = read.begin / kPageBytes * kPageBytes;
      read.end = (read.end + kPageBytes - 1) / kPageBytes * kPageBytes;
    }
    return std::move(plan_);
  }

 private:
  // The last window ends with the file: its border may be no number of 64 bits.
  uint64_t WindowEnd(uint64_t window) const {
    return file_size_ / request_bytes_ == window ? file_size_ : (window + 1) * request_bytes_;
  }

  void AddWithinWindow(const ReadPart& part, uint64_t window) {
    std::vector<PlannedRead>& reads = plan_.reads;
    const bool joins = !reads.empty() && reads.back().begin / request_bytes_ == window &&
                       part.begin - reads.back().end <= kMaxGapBytes;
    if (!joins) reads.push_back({part.begin, part.end, plan_.parts.size(), plan_.parts.size()});
    plan_.parts.push_back(part);
    reads.back().end = part.end;
    reads.back().end_part = plan_.parts.size();
  }

  const uint64_t file_size_;
  const uint64_t request_bytes_;
  ReadPlan plan_;
};

// Walks the two sorted lists side by side.
class Walk {
 public:
  Walk(const std::vector<ReadExtent>& extents, Planner* planner, bool verify)
      : extents_(extents), planner_(planner), verify_(verify) {}

  // False if some byte of the scatter lies in no extent.
  bool Add(const Scatter& scatter) {
    for (uint64_t at = scatter.begin; at < scatter.end;) {
      while (next_ < extents_.size() && extents_[next_].end <= at) ++next_;
      if (next_ == extents_.size() || extents_[next_].begin > at) return false;
      const uint64_t end = std::min(scatter.end, extents_[next_].end);
      if (verify_) {
        AddExtentOnce();
      } else {
        planner_->Add(at, end, next_);
      }
      at = end;
    }
    return true;
  }

 private:
  void AddExtentOnce() {
    if (num_added_ > next_) return;
    planner_->Add(extents_[next_].begin, extents_[next_].end, next_);
    num_added_ = next_ + 1;
  }

  const std::vector<ReadExtent>& extents_;
  Planner* const planner_;
  const bool verify_;
  size_t next_ = 0;       // the first extent that may hold the next byte
  size_t num_added_ = 0;  // extents below this one have been decided on
};

}  // namespace

Result<ReadPlan> PlanReads(uint64_t file_size, const std::vector<ReadExtent>& extents,
                           const std::vector<Scatter>& scatters, uint64_t request_bytes, bool verify) {
  if (file_size > static_cast<uint64_t>(INT64_MAX)) {
    return Refuse(std::to_string(file_size) + " bytes is no size of a file");
  }
  if (Status status = CheckRanges("extent", extents, file_size); !status.ok()) return status;
  if (Status status = CheckRanges("scatter", scatters, file_size); !status.ok()) return status;

  Planner planner(file_size, request_bytes);
  Walk walk(extents, &planner, verify);
  for (size_t i = 0; i < scatters.size(); ++i) {
    const Scatter& scatter = scatters[i];
    if (scatter.begin == scatter.end) continue;
    if (scatter.dst == nullptr)
      return Refuse(Range("scatter", i, scatter.begin, scatter.end) + " goes nowhere");
    if (!walk.Add(scatter))
      return Refuse(Range("scatter", i, scatter.begin, scatter.end) + " lies in no extent");
  }
  return std::move(planner).Finish();
}

}  // namespace elastates
