// A failure fails one snapshot: its waiters are released, its blocks come back, later snapshots work.

#include <atomic>
#include <future>

#include "base/thread.h"
#include "engine_parts.h"

namespace elastates {
namespace {

// Submits one snapshot under the fault and a good one after it; returns the failure.
Status FailOneThenSucceed(Fault fault, EngineOptions options) {
  TempDir dir;
  auto engine = MakeEngine(options);
  Status failure;
  {
    FaultGuard guard(std::move(fault));
    Sample sample = MakeSample(dir.File("bad"), 100, {200000, 3, 50000}, options.block_bytes, 2);
    auto snapshot = engine->Submit(sample.plan);
    failure = snapshot->WaitWritten(kTimeoutS);
    CHECK(snapshot->finished());
    CHECK(snapshot->sources_released());
    CHECK(snapshot->TakeOwner() != nullptr);
    CHECK(snapshot->WaitCopied(kTimeoutS).code() == failure.code());
  }
  Sample sample = MakeSample(dir.File("good"), 100, {200000, 3, 50000}, options.block_bytes, 2);
  auto snapshot = engine->Submit(sample.plan);
  CHECK_EQ(snapshot->WaitWritten(kTimeoutS).message(), std::string());
  CheckFileAndCrcs(sample, dir.File("good"), *snapshot);
  engine->Close();
  CHECK_EQ(engine->free_bytes(), engine->stats().arena_bytes);
  CHECK_EQ(engine->stats().num_failed, 1u);
  CHECK_EQ(engine->stats().num_written, 1u);
  return failure;
}

EngineOptions WithBackend(WriteBackend backend) {
  EngineOptions options = SmallEngine(3);
  options.write_backend = backend;
  return options;
}

TEST(open_fails) {
  Status status = FailOneThenSucceed(FaultIn("open", EACCES), SmallEngine(3));
  CHECK_EQ(status.sys_errno(), EACCES);
  CHECK(status.message().find("write: ") == 0);
}

TEST(disk_is_full_at_the_beginning) {
  CHECK(FailOneThenSucceed(FaultIn("fallocate", ENOSPC), SmallEngine(3)).code() == StatusCode::kNoSpace);
}

TEST(disk_is_full_in_the_middle) {
  Status status = FailOneThenSucceed(FaultIn("write", ENOSPC, 7), WithBackend(WriteBackend::kThreads));
  CHECK(status.code() == StatusCode::kNoSpace);
}

TEST(quota_is_exceeded_in_the_middle) {
  Status status = FailOneThenSucceed(FaultIn("write", EDQUOT, 5), WithBackend(WriteBackend::kAuto));
  CHECK(status.code() == StatusCode::kQuotaExceeded);
}

TEST(every_write_fails_from_the_third_on) {
  Status status = FailOneThenSucceed(FaultIn("write", EIO, 3, 1000), WithBackend(WriteBackend::kThreads));
  CHECK(status.code() == StatusCode::kIoError);
}

TEST(fsync_fails) {
  Status status = FailOneThenSucceed(FaultIn("fsync", EIO), SmallEngine(3));
  CHECK(status.code() == StatusCode::kIoError);
  CHECK(status.message().find("commit: ") == 0);
}

TEST(failure_reaches_a_waiter_at_the_gate) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(2));
  FaultGuard guard(FaultIn("write", EIO, 1, 1000));
  auto snapshot = engine->Submit(MakeSample(dir.File("bad"), 100, {1000000}, 4096).plan);
  CHECK(snapshot->WaitCopied(kTimeoutS).code() ==
        StatusCode::kIoError);  // it would never be copied: the arena is small
}

TEST(device_segment_without_a_device_fails_its_snapshot) {
  if (NumDevices() > 0)
    return;  // device copies are tested through the extension, where there are tensors to copy
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(3));
  Sample sample = MakeSample(dir.File("data"), 100, {30000, 30000}, 4096);
  sample.plan.segments[1].device = 0;
  auto snapshot = engine->Submit(sample.plan);
  CHECK(!snapshot->WaitCopied(kTimeoutS).ok());
  CHECK(snapshot->WaitWritten(kTimeoutS).message().find("copy-") == 0);
  engine->Close();
  CHECK_EQ(engine->free_bytes(), engine->stats().arena_bytes);
}

TEST(existing_file_is_not_overwritten) {
  TempDir dir;
  std::ofstream(dir.File("data")) << "precious";
  auto engine = MakeEngine(SmallEngine(3));
  auto snapshot = engine->Submit(MakeSample(dir.File("data"), 100, {100000}, 4096).plan);
  CHECK_EQ(snapshot->WaitWritten(kTimeoutS).sys_errno(), EEXIST);
  CHECK_EQ(ReadFile(dir.File("data")), std::string("precious"));
}

TEST(plans_that_break_their_promises_are_refused_by_name) {
  auto engine = MakeEngine(SmallEngine(3));
  auto refusal = [&](void (*spoil)(SnapshotPlan*)) {
    Sample sample = MakeSample("/nonexistent/data", 100, {6000, 6000}, 4096, 2);
    spoil(&sample.plan);
    auto snapshot = engine->Submit(std::move(sample.plan));
    CHECK(snapshot->finished());
    Status status = snapshot->WaitGroupCopied(0, 0);
    CHECK(status.code() == StatusCode::kInvalidArgument);
    return status.message();
  };
  auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(has(refusal([](SnapshotPlan* p) { p->segments[1].file_offset += 1; }), "segment 1 begins at 6101"));
  CHECK(has(refusal([](SnapshotPlan* p) { p->segments[0].data = nullptr; }), "segment 0 has no data"));
  CHECK(has(refusal([](SnapshotPlan* p) { p->segments[1].group = 2; }), "of group 2"));
  CHECK(has(refusal([](SnapshotPlan* p) { p->file_size += 1; }), "segments end at 12100"));
  CHECK(has(refusal([](SnapshotPlan* p) { p->extent_ends.pop_back(); }), "extents end at"));
  CHECK(has(refusal([](SnapshotPlan* p) { p->extent_ends = {5000, 12100}; }), "crosses a chunk border"));
}

TEST(options_that_make_no_sense_are_refused) {
  for (void (*spoil)(EngineOptions*) : std::initializer_list<void (*)(EngineOptions*)>{
           [](EngineOptions* o) { o->block_bytes = 1000; }, [](EngineOptions* o) { o->num_copy_threads = 0; },
           [](EngineOptions* o) { o->write_depth = 0; }}) {
    EngineOptions options = SmallEngine();
    spoil(&options);
    CHECK(Engine::Create(options).status().code() == StatusCode::kInvalidArgument);
  }
}

TEST(close_while_busy_finishes_what_was_submitted) {
  for (int round = 0; round < 10; ++round) {
    TempDir dir;
    auto engine = MakeEngine(SmallEngine(2));
    std::vector<Sample> samples;
    std::vector<std::shared_ptr<Snapshot>> snapshots;
    for (int i = 0; i < 4; ++i) {
      samples.push_back(MakeSample(dir.File(std::to_string(i)), 100, {40000, 11}, 4096));
      snapshots.push_back(engine->Submit(samples.back().plan));
    }
    NamedThread waiter("waiter", [&] { CHECK(snapshots[3]->WaitCopied(kTimeoutS).ok()); });
    NamedThread closer("closer", [&] { engine->Close(); });
    engine->Close();
    closer.Join();
    waiter.Join();
    for (int i = 0; i < 4; ++i) {
      CHECK(snapshots[i]->WaitWritten(0).ok());
      CheckFileAndCrcs(samples[i], dir.File(std::to_string(i)), *snapshots[i]);
    }
    auto late = engine->Submit(samples[0].plan);
    CHECK(late->WaitWritten(0).code() == StatusCode::kCancelled);
  }
}

TEST(snapshots_outlive_their_engine) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(2));
  auto snapshot = engine->Submit(MakeSample(dir.File("data"), 100, {40000}, 4096).plan);
  engine.reset();
  CHECK(snapshot->WaitWritten(0).ok());
  CHECK(snapshot->WaitCopied(0).ok());
  CHECK(snapshot->TakeOwner() != nullptr);
}

TEST(describe_names_every_actor_of_the_chain) {
  auto engine = MakeEngine(SmallEngine(2));
  std::string text = engine->Describe();
  for (const char* name : {"capture (ds-capture)", "copy-0 (ds-copy-0)", "write (ds-write)",
                           "seal (ds-write)", "commit (ds-commit)", "2 of 2 blocks free"}) {
    CHECK(text.find(name) != std::string::npos);
  }
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
