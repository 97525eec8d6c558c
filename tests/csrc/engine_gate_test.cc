// Waiting for copies: groups, mutation checks, owners, credit.

#include <atomic>
#include <future>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "base/thread.h"
#include "engine/copy_priority.h"
#include "engine_parts.h"

namespace elastates {
namespace {

TEST(a_group_can_be_waited_for_while_a_later_one_is_still_held_up) {
  TempDir dir;
  EngineOptions options = SmallEngine(64);
  options.num_copy_threads = 1;
  auto engine = MakeEngine(options);
  Sample sample = MakeSample(dir.File("data"), 100, {20000, 20000, 20000}, 4096, 3);
  std::promise<void> release;
  auto released = release.get_future().share();
  std::vector<uint32_t> checked;  // by the one copy lane, before anybody is told
  sample.plan.check_unchanged = [&](uint32_t group) {
    checked.push_back(group);
    if (group == 1) released.wait();
    return Status::Ok();
  };
  auto snapshot = engine->Submit(sample.plan);
  CHECK(snapshot->WaitGroupCopied(0, kTimeoutS).ok());
  CHECK(snapshot->WaitGroupCopied(1, 0.01).code() == StatusCode::kDeadlineExceeded);
  CHECK(snapshot->WaitGroupCopied(2, 0).code() == StatusCode::kDeadlineExceeded);
  CHECK(snapshot->WaitCopied(0).code() == StatusCode::kDeadlineExceeded);
  CHECK(snapshot->TakeOwner() == nullptr);
  release.set_value();
  CHECK(snapshot->WaitGroupCopied(2, kTimeoutS).ok());
  CHECK(snapshot->WaitCopied(kTimeoutS).ok());
  CHECK(checked == std::vector<uint32_t>({0, 1, 2}));
  CHECK(snapshot->WaitGroupCopied(3, 0).code() == StatusCode::kInvalidArgument);
  CHECK(snapshot->WaitWritten(kTimeoutS).ok());
  CheckFileAndCrcs(sample, dir.File("data"), *snapshot);
}

TEST(groups_interleaved_over_many_segments_are_each_checked_once) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(4));
  Sample sample = MakeSample(dir.File("data"), 100, std::vector<size_t>(300, 123), 4096, 1);
  sample.plan.num_groups = 4;  // the last has no segments
  for (size_t i = 0; i < sample.plan.segments.size(); ++i) sample.plan.segments[i].group = i % 3;
  std::atomic<int> num_checks[4] = {};
  sample.plan.check_unchanged = [&](uint32_t group) {
    ++num_checks[group];
    return Status::Ok();
  };
  auto snapshot = engine->Submit(sample.plan);
  CHECK(snapshot->WaitGroupCopied(3, 0).ok());  // nothing to wait for
  CHECK(snapshot->WaitWritten(kTimeoutS).ok());
  for (int group = 0; group < 3; ++group) CHECK_EQ(num_checks[group].load(), 1);
  CHECK_EQ(num_checks[3].load(), 0);
}

TEST(mutation_fails_the_snapshot_and_nobody_is_told_that_it_was_copied) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(3));
  Sample sample = MakeSample(dir.File("data"), 100, {30000, 30000}, 4096, 2);
  sample.plan.check_unchanged = [](uint32_t group) {
    return group == 1 ? Status(StatusCode::kMutated, "layer.weight was written to") : Status::Ok();
  };
  auto snapshot = engine->Submit(sample.plan);
  Status status = snapshot->WaitGroupCopied(1, kTimeoutS);
  CHECK(status.code() == StatusCode::kMutated);
  CHECK(status.message().find("copy-") == 0);
  CHECK(status.message().find("layer.weight") != std::string::npos);
  CHECK(snapshot->WaitWritten(kTimeoutS).code() == StatusCode::kMutated);
  CHECK_EQ(snapshot->times().written_s, 0.0);

  Sample next = MakeSample(dir.File("next"), 100, {30000}, 4096);
  auto later = engine->Submit(next.plan);
  CHECK(later->WaitWritten(kTimeoutS).ok());
  CheckFileAndCrcs(next, dir.File("next"), *later);
  CHECK_EQ(engine->stats().num_failed, 1u);
}

TEST(check_that_throws_fails_the_snapshot_and_releases_its_waiters) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(3));
  Sample sample = MakeSample(dir.File("data"), 100, {30000}, 4096);
  sample.plan.check_unchanged = [](uint32_t) -> Status { throw std::runtime_error("boom"); };
  auto snapshot = engine->Submit(sample.plan);
  CHECK(snapshot->WaitCopied(kTimeoutS).code() == StatusCode::kInternal);
  CHECK(snapshot->WaitWritten(kTimeoutS).message().find("boom") != std::string::npos);
  CHECK(snapshot->TakeOwner() != nullptr);
}

// An owner that knows which thread destroyed it.
struct WatchedOwner {
  std::shared_ptr<Sources> sources;
  std::promise<std::thread::id>* destroyed_on;
  ~WatchedOwner() { destroyed_on->set_value(std::this_thread::get_id()); }
};

TEST(owner_is_handed_over_and_never_destroyed_by_the_engine) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(3));
  for (bool take : {true, false}) {
    std::promise<std::thread::id> destroyed_on;
    auto destroyed = destroyed_on.get_future();
    Sample sample = MakeSample(dir.File(take ? "taken" : "left"), 100, {50000}, 4096);
    auto owner = std::make_shared<WatchedOwner>();
    owner->sources = std::static_pointer_cast<Sources>(std::move(sample.plan.owner));
    owner->destroyed_on = &destroyed_on;
    sample.plan.owner = owner;
    sample.plan.check_unchanged = [owner](uint32_t) { return Status::Ok(); };  // bindings do this
    owner.reset();
    auto snapshot = engine->Submit(std::move(sample.plan));
    if (take) {
      CHECK(snapshot->WaitCopied(kTimeoutS).ok());
      CHECK(snapshot->TakeOwner() != nullptr);
      CHECK(snapshot->TakeOwner() == nullptr);
    } else {
      snapshot.reset();  // a caller who does not care: the engine must finish and still not destroy it
      engine->Submit(MakeSample(dir.File("after"), 10, {1}, 4096).plan)->WaitWritten(kTimeoutS).ok();
      engine->Close();
    }
    CHECK(destroyed.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
    CHECK(destroyed.get() == std::this_thread::get_id());
  }
}

TEST(credit_counts_what_is_submitted_and_not_yet_cut) {
  TempDir dir;
  EngineOptions options = SmallEngine(8);
  options.num_copy_threads = 1;
  auto engine = MakeEngine(options);
  CHECK(engine->HasCreditFor(8 * 4096));
  CHECK(engine->HasCreditFor(uint64_t{1} << 40));  // larger than the arena: all of it will do
  Sample sample = MakeSample(dir.File("data"), 100, {4 * 4096}, 4096);
  std::promise<void> release;
  auto released = release.get_future().share();
  sample.plan.check_unchanged = [&](uint32_t) {
    released.wait();
    return Status::Ok();
  };
  auto snapshot = engine->Submit(sample.plan);
  CHECK(!engine->HasCreditFor(8 * 4096));  // its last blocks cannot be written before the check returns
  release.set_value();
  CHECK(snapshot->WaitWritten(kTimeoutS).ok());
  engine->Close();
  CHECK(engine->HasCreditFor(8 * 4096));
}

TEST(copy_threads_that_may_come_back_change_priority_and_files_stay_exact) {
  TempDir dir;
  EngineOptions options = SmallEngine(4);
  options.copy_nice = 10;
  auto engine = MakeEngine(options);
  for (uint32_t i = 0; i < 20; ++i) {
    Sample sample = MakeSample(dir.File(std::to_string(i)), 100, {100000}, 4096, 1, i);
    auto snapshot = engine->Submit(sample.plan);
    CHECK(snapshot->WaitCopied(kTimeoutS).ok());
    CHECK(snapshot->WaitWritten(kTimeoutS).ok());
    CheckFileAndCrcs(sample, dir.File(std::to_string(i)), *snapshot);
  }
}

// The sink of the first write is held, so nothing is written and no block comes back.
TEST(copies_keep_to_their_pace_until_somebody_waits) {
  TempDir dir;
  EngineOptions options = SmallEngine(8);
  options.copy_ahead_bytes = 3 * 4096;
  auto engine = MakeEngine(options);
  Sample sample = MakeSample(dir.File("data"), 100, {6 * 4096}, 4096);
  Fault held;
  held.op = "open";
  held.hold = true;
  SetFault(held);
  auto snapshot = engine->Submit(sample.plan);
  while (engine->free_bytes() > 5 * 4096) std::this_thread::yield();
  CHECK(snapshot->WatchCopied(0.05).code() == StatusCode::kDeadlineExceeded);
  CHECK_EQ(engine->free_bytes(), size_t{5 * 4096});  // three blocks are out and stay out: that is its pace
  snapshot->Hurry();
  CHECK(snapshot->WatchCopied(kTimeoutS).ok());
  ClearFault();
  CHECK(snapshot->WaitWritten(kTimeoutS).ok());
  CheckFileAndCrcs(sample, dir.File("data"), *snapshot);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
