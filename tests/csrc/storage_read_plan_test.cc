// PlanReads: what is asked for is read, once, in bounded reads; hostile lists are refused.
#include <algorithm>
#include <random>

#include "check.h"
#include "storage/read_plan.h"

namespace elastates {
namespace {

constexpr uint64_t kRequest = 64 << 10;
char anywhere[1];

ReadPlan Plan(uint64_t size, const std::vector<ReadExtent>& extents, const std::vector<Scatter>& scatters,
              bool verify = true) {
  Result<ReadPlan> plan = PlanReads(size, extents, scatters, kRequest, verify);
  CHECK_OK(plan.status());
  return std::move(plan).value();
}

bool Refused(uint64_t size, const std::vector<ReadExtent>& extents, const std::vector<Scatter>& scatters) {
  const Status status = PlanReads(size, extents, scatters, kRequest, true).status();
  return status.code() == StatusCode::kInvalidArgument && !status.message().empty();
}

TEST(refuses_extents_that_leave_the_file_or_overlap) {
  CHECK(Refused(100, {{0, 101, 0}}, {}));
  CHECK(Refused(100, {{101, 101, 0}}, {}));
  CHECK(Refused(100, {{50, 40, 0}}, {}));
  CHECK(Refused(100, {{0, 50, 0}, {49, 60, 0}}, {}));
  CHECK(Refused(100, {{50, 60, 0}, {0, 50, 0}}, {}));
  CHECK(Refused(100, {{0, UINT64_MAX, 0}}, {}));
  CHECK(Refused(100, {{UINT64_MAX, 10, 0}}, {}));
  CHECK(Refused(100, {{UINT64_MAX - 1, UINT64_MAX, 0}}, {}));
}

TEST(refuses_scatters_that_leave_the_extents_or_overlap) {
  const std::vector<ReadExtent> extents = {{10, 40, 0}, {40, 50, 0}, {60, 100, 0}};
  CHECK(Refused(100, extents, {{0, 20, anywhere}}));
  CHECK(Refused(100, extents, {{45, 55, anywhere}}));
  CHECK(Refused(100, extents, {{45, 65, anywhere}}));
  CHECK(Refused(100, extents, {{52, 58, anywhere}}));
  CHECK(Refused(100, extents, {{90, 101, anywhere}}));
  CHECK(Refused(100, extents, {{90, UINT64_MAX, anywhere}}));
  CHECK(Refused(100, extents, {{20, 10, anywhere}}));
  CHECK(Refused(100, extents, {{10, 20, anywhere}, {19, 25, anywhere}}));
  CHECK(Refused(100, extents, {{20, 30, anywhere}, {10, 20, anywhere}}));
  CHECK(Refused(100, extents, {{10, 20, nullptr}}));
  CHECK(Refused(100, {}, {{10, 20, anywhere}}));
  CHECK(!Refused(100, extents, {{10, 50, anywhere}, {60, 100, anywhere}}));
}

TEST(refuses_a_file_no_system_can_have) {
  CHECK(Refused(UINT64_MAX, {{0, 10, 0}}, {{0, 10, anywhere}}));
  CHECK(Refused(uint64_t{1} << 63, {{0, 10, 0}}, {{0, 10, anywhere}}));
}

TEST(plans_at_the_far_end_of_the_largest_file) {
  const uint64_t size = INT64_MAX;
  const ReadPlan plan = Plan(size, {{size - 10, size, 0}}, {{size - 5, size, anywhere}});
  CHECK_EQ(plan.reads.size(), 1u);
  CHECK_EQ(plan.parts[0].begin, size - 10);
  CHECK_EQ(plan.reads[0].end, uint64_t{1} << 63);
}

TEST(an_extent_no_scatter_touches_is_not_read) {
  const std::vector<ReadExtent> extents = {{0, 1 << 20, 0}, {1 << 20, 2 << 20, 0}, {2 << 20, 3 << 20, 0}};
  const ReadPlan plan = Plan(3 << 20, extents, {{(1 << 20) + 5, (1 << 20) + 6, anywhere}});
  CHECK_EQ(plan.reads.front().begin, uint64_t{1} << 20);
  CHECK_EQ(plan.reads.back().end, uint64_t{2} << 20);
  CHECK_EQ(Plan(3 << 20, extents, {}).reads.size(), 0u);
  CHECK_EQ(Plan(3 << 20, extents, {{7, 7, nullptr}}).reads.size(), 0u);
}

TEST(without_verification_only_the_pages_of_scatters_are_read) {
  const ReadPlan plan =
      Plan(3 << 20, {{0, 3 << 20, 0}}, {{5000, 5001, anywhere}, {2 << 20, (2 << 20) + 1, anywhere}}, false);
  CHECK_EQ(plan.reads.size(), 2u);
  CHECK_EQ(plan.reads[0].begin, 4096u);
  CHECK_EQ(plan.reads[0].end, 8192u);
}

TEST(small_gaps_are_read_over_and_large_ones_are_not) {
  const auto num_reads = [](uint64_t gap) {
    const std::vector<ReadExtent> extents = {{0, 1000, 0}, {1000 + gap, 2000 + gap, 0}};
    return PlanReads(1 << 20, extents, {{0, 1, anywhere}, {1000 + gap, 1001 + gap, anywhere}}, 1 << 20, true)
        .value()
        .reads.size();
  };
  CHECK_EQ(num_reads(64 << 10), 1u);
  CHECK_EQ(num_reads((64 << 10) + 1), 2u);
}

// A random tiling of a random part of a file, and random scatters inside it.
struct RandomCase {
  explicit RandomCase(uint32_t seed) {
    std::mt19937 random(seed);
    uint64_t at = random() % 10000;
    for (int i = 0; i < 40; ++i) {
      const uint64_t end = at + random() % (i % 5 == 0 ? 300000 : 3000);
      extents.push_back({at, end, 0});
      for (uint64_t begin = at + random() % 4000; begin < end; begin += random() % 40000) {
        const uint64_t stop = std::min<uint64_t>(end, begin + random() % 5000);
        scatters.push_back({begin, stop, anywhere});
        begin = stop;
      }
      at = end + (random() % 3 == 0 ? random() % 200000 : 0);
    }
    size = at + random() % 5000;
  }
  uint64_t size;
  std::vector<ReadExtent> extents;
  std::vector<Scatter> scatters;
};

TEST(random_plans_keep_every_promise) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    const RandomCase c(seed);
    for (bool verify : {true, false}) {
      const ReadPlan plan = Plan(c.size, c.extents, c.scatters, verify);
      uint64_t previous_end = 0, num_parts = 0;
      for (const PlannedRead& read : plan.reads) {
        CHECK_EQ(read.begin % 4096, 0u);
        CHECK_EQ(read.end % 4096, 0u);
        CHECK_LE(read.end - read.begin, kRequest);
        CHECK_EQ(read.begin / kRequest, (read.end - 1) / kRequest);
        CHECK_EQ(read.first_part, num_parts);
        CHECK_LT(read.first_part, read.end_part);
        num_parts = read.end_part;
        for (size_t i = read.first_part; i < read.end_part; ++i) {
          const ReadPart& part = plan.parts[i];
          CHECK_LT(part.begin, part.end);
          CHECK_LE(previous_end, part.begin);
          CHECK_LE(read.begin, part.begin);
          CHECK_LE(part.end, read.end);
          CHECK_LE(c.extents[part.extent].begin, part.begin);
          CHECK_LE(part.end, c.extents[part.extent].end);
          previous_end = part.end;
        }
      }
      CHECK_EQ(num_parts, plan.parts.size());
    }
  }
}

TEST(random_plans_cover_exactly_the_extents_that_are_needed) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    const RandomCase c(seed);
    std::vector<uint64_t> covered(c.extents.size(), 0);
    for (const ReadPart& part : Plan(c.size, c.extents, c.scatters).parts)
      covered[part.extent] += part.end - part.begin;
    for (size_t i = 0; i < c.extents.size(); ++i) {
      const ReadExtent& extent = c.extents[i];
      const bool needed = std::any_of(c.scatters.begin(), c.scatters.end(), [&](const Scatter& s) {
        return s.begin < s.end && s.begin < extent.end && extent.begin < s.end;
      });
      CHECK_EQ(covered[i], needed ? extent.end - extent.begin : 0);
    }
  }
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
