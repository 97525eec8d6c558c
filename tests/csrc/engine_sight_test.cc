// What the engine tells about itself: where its time went, and the trace of its actors.

#include <cerrno>
#include <map>
#include <set>
#include <string>
#include <thread>

#include "base/trace.h"
#include "engine_parts.h"

namespace elastates {
namespace {

constexpr size_t kBlock = 4096;

Fault HeldWrites() {
  Fault fault;
  fault.op = "write";
  fault.times = 1 << 30;
  fault.hold = true;
  return fault;
}

// Until as many bytes lie in the arena as it takes, and one more chunk waits for a block.
void WaitUntilStarved(Engine* engine) {
  const double starved_s = engine->stats().starved_s;
  while (engine->stats().starved_s == starved_s) std::this_thread::yield();
}

TEST(time_spent_waiting_for_storage_is_told_from_copying) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(4, kBlock));
  Sample sample = MakeSample(dir.File("data"), 100, {10 * kBlock}, kBlock);
  std::shared_ptr<Snapshot> snapshot;
  {
    FaultGuard held(HeldWrites());
    snapshot = engine->Submit(sample.plan);
    WaitUntilStarved(engine.get());
    const EngineStats before = engine->stats();
    CHECK(snapshot->WaitCopied(0.05).code() == StatusCode::kDeadlineExceeded);
    const EngineStats after = engine->stats();
    CHECK(after.starved_s - before.starved_s > 0.04);
    CHECK(after.copying_s - before.copying_s < 0.04);  // the last copy may just have been counted
    CHECK_EQ(after.bytes_stored, 0u);
    CHECK_EQ(after.free_bytes, 0u);
    CHECK_EQ(snapshot->uncopied_bytes() + after.bytes_copied, 10 * kBlock);
  }
  CHECK(snapshot->WaitWritten(kTimeoutS).ok());
  const EngineStats done = engine->stats();
  CHECK(done.copying_s > 0);
  CHECK_EQ(done.bytes_stored, sample.plan.file_size);
  CHECK_EQ(snapshot->uncopied_bytes(), 0u);
  CHECK(snapshot->WaitCopied(0.05).ok());
  CHECK_EQ(engine->stats().starved_s, done.starved_s);  // idle is neither
}

TEST(a_held_copy_counts_as_copying) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(64, kBlock));
  Sample sample = MakeSample(dir.File("data"), 0, {kBlock}, kBlock);
  sample.plan.check_unchanged = [](uint32_t) {
    usleep(50000);
    return Status::Ok();
  };
  CHECK(engine->Submit(sample.plan)->WaitWritten(kTimeoutS).ok());
  const EngineStats stats = engine->stats();
  CHECK(stats.copying_s >= 0.05);
  CHECK_EQ(stats.starved_s, 0.0);
}

TEST(a_failed_snapshot_leaves_no_copy_counted_as_active) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(4, kBlock));
  Sample sample = MakeSample(dir.File("data"), 100, {10 * kBlock}, kBlock);
  {
    FaultGuard broken(FaultIn("write", EIO));
    CHECK(!engine->Submit(sample.plan)->WaitWritten(kTimeoutS).ok());
  }
  const EngineStats before = engine->stats();
  const EngineStats after = engine->stats();
  CHECK_EQ(after.copying_s, before.copying_s);
  CHECK_EQ(after.starved_s, before.starved_s);
}

TEST(the_trace_has_every_chunk_at_every_actor_and_the_credits) {
  constexpr size_t kChunks = 11;
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(4, kBlock));
  Sample sample = MakeSample(dir.File("data"), 100, {10 * kBlock}, kBlock);
  CHECK(trace::Start());
  auto snapshot = engine->Submit(sample.plan);
  CHECK(snapshot->WaitWritten(kTimeoutS).ok());
  engine->Close();  // the last blocks come home
  trace::Stop();
  std::map<std::string, std::multiset<uint64_t>> chunks;
  std::map<std::string, uint64_t> bytes;
  int64_t last_credit_ns = 0;
  uint64_t last_credits = 0;
  for (const trace::ThreadRecords& thread : trace::Drain()) {
    CHECK_EQ(thread.num_dropped, 0u);
    for (const trace::Record& record : thread.records) {
      CHECK(record.begin_ns <= record.end_ns);
      if (record.what == std::string("free blocks")) {
        if (record.begin_ns >= last_credit_ns) last_credits = record.subject.size_bytes;
        last_credit_ns = std::max(last_credit_ns, record.begin_ns);
        continue;
      }
      CHECK_EQ(record.subject.snapshot, snapshot->id());
      chunks[record.what].insert(record.subject.chunk);
      bytes[record.what] += record.subject.size_bytes;
    }
  }
  for (const char* actor : {"capture", "copy", "write", "seal"}) {
    CHECK_EQ(chunks[actor].size(), kChunks);
    CHECK_EQ(std::set<uint64_t>(chunks[actor].begin(), chunks[actor].end()).size(), kChunks);
    CHECK_EQ(*chunks[actor].rbegin(), kChunks - 1);
  }
  for (const char* actor : {"capture", "copy", "write"}) CHECK_EQ(bytes[actor], sample.plan.file_size);
  CHECK_EQ(chunks["open"].size(), 1u);
  CHECK_EQ(chunks["sync"].size(), 1u);
  CHECK_EQ(last_credits, 4u);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
