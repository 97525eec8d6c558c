// The trace: what is recorded, by whom, and what becomes of records that nobody drains.

#include <atomic>
#include <string>
#include <vector>

#include "base/thread.h"
#include "base/trace.h"
#include "check.h"

namespace elastates {
namespace {

// Of the rings that hold or have dropped something.
std::vector<trace::ThreadRecords> DrainNonEmpty() {
  std::vector<trace::ThreadRecords> kept;
  for (trace::ThreadRecords& thread : trace::Drain()) {
    if (!thread.records.empty() || thread.num_dropped > 0) kept.push_back(std::move(thread));
  }
  return kept;
}

void RecordSlices(int count) {
  for (int i = 0; i < count; ++i) {
    trace::Slice slice("work");
    slice.subject = {1, static_cast<uint64_t>(i), 10};
  }
}

TEST(nothing_is_recorded_while_it_is_off) {
  RecordSlices(3);
  trace::Count("level", []() -> uint64_t {
    CHECK(!"a counter is not even read");
    return 0;
  });
  CHECK(DrainNonEmpty().empty());
}

TEST(each_thread_has_a_ring_that_outlives_it) {
  CHECK(trace::Start());
  NamedThread("ds-traced", [] { RecordSlices(3); }).Join();
  trace::Count("level", [] { return 7; });
  trace::Stop();
  const auto drained = DrainNonEmpty();
  CHECK_EQ(drained.size(), 2u);
  const auto& worker = drained[0].thread_name == "ds-traced" ? drained[0] : drained[1];
  const auto& here = drained[0].thread_name == "ds-traced" ? drained[1] : drained[0];
  CHECK_EQ(worker.thread_name, std::string("ds-traced"));
  CHECK_EQ(worker.records.size(), 3u);
  int64_t last_ns = 0;
  for (size_t i = 0; i < worker.records.size(); ++i) {
    const trace::Record& record = worker.records[i];
    CHECK_EQ(std::string(record.what), std::string("work"));
    CHECK_EQ(record.subject.chunk, i);
    CHECK(last_ns <= record.begin_ns && record.begin_ns <= record.end_ns);
    last_ns = record.end_ns;
  }
  CHECK_EQ(here.records.size(), 1u);
  CHECK_EQ(here.records[0].subject.size_bytes, 7u);
  CHECK(DrainNonEmpty().empty());
}

TEST(only_one_reader_at_a_time_and_what_was_left_is_forgotten) {
  CHECK(trace::Start());
  CHECK(!trace::Start());
  RecordSlices(2);
  trace::Stop();
  CHECK(trace::Start());
  trace::Stop();
  CHECK(DrainNonEmpty().empty());
}

TEST(a_slice_begun_while_it_was_off_is_not_recorded_when_it_ends) {
  const int64_t begin_ns = trace::Begin();
  CHECK_EQ(begin_ns, 0);
  CHECK(trace::Start());
  trace::End("late", begin_ns, {});
  trace::Stop();
  CHECK(DrainNonEmpty().empty());
}

TEST(a_full_ring_drops_and_counts) {
  constexpr int kRecords = 10000;  // more than a ring takes
  CHECK(trace::Start());
  RecordSlices(kRecords);
  trace::Stop();
  const auto drained = DrainNonEmpty();
  CHECK_EQ(drained.size(), 1u);
  CHECK(drained[0].num_dropped > 0);
  CHECK_EQ(drained[0].records.size() + drained[0].num_dropped, static_cast<size_t>(kRecords));
  CHECK_EQ(drained[0].records.front().subject.chunk, 0u);  // the oldest are kept
  CHECK(DrainNonEmpty().empty());
}

TEST(draining_while_others_record_loses_nothing_and_keeps_the_order) {
  constexpr int kThreads = 3;
  constexpr uint64_t kRecords = 20000;
  CHECK(trace::Start());
  std::atomic<int> running{kThreads};
  std::vector<NamedThread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back("ds-traced-" + std::to_string(i), [&] {
      RecordSlices(kRecords);
      --running;
    });
  }
  std::vector<uint64_t> seen(kThreads), dropped(kThreads);
  std::vector<uint64_t> next(kThreads);
  for (bool last = false; !last;) {
    last = running == 0;  // then one more drain finds the rest
    for (const auto& thread : DrainNonEmpty()) {
      const size_t index = thread.thread_name.back() - '0';
      dropped[index] += thread.num_dropped;
      seen[index] += thread.records.size();
      for (const trace::Record& record : thread.records) {
        CHECK(record.subject.chunk >= next[index]);
        next[index] = record.subject.chunk + 1;
      }
    }
  }
  trace::Stop();
  for (int i = 0; i < kThreads; ++i) CHECK_EQ(seen[i] + dropped[i], kRecords);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
