// Registers, credits, fan-out and the end of data.

#include <future>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "actor/graph.h"
#include "actor_parts.h"
#include "arena/arena.h"
#include "check.h"

namespace elastates {
namespace {

std::vector<int> Range(int begin, int end) {
  std::vector<int> values(end - begin);
  std::iota(values.begin(), values.end(), begin);
  return values;
}

TEST(chain_on_one_lane_delivers_in_order_and_ends) {
  Graph graph;
  Lane& lane = graph.AddLane("one");
  auto& numbers = graph.Add<Numbers>(lane, 1000);
  auto& plus = graph.Add<Apply>(lane, "plus", Plus(7));
  auto& collect = graph.Add<Collect>(lane);
  graph.Connect(numbers.out, plus.in);
  graph.Connect(plus.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK(collect.values == Range(7, 1007));
  CHECK(collect.ended);
}

TEST(chain_across_three_lanes_with_one_credit_each) {
  Graph graph;
  auto& numbers = graph.Add<Numbers>(graph.AddLane("a"), 2000, 1);
  auto& plus = graph.Add<Apply>(graph.AddLane("b", Flush::kEveryAct), "plus", Plus(1), 1);
  auto& collect = graph.Add<Collect>(graph.AddLane("c"));
  graph.Connect(numbers.out, plus.in);
  graph.Connect(plus.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK(collect.values == Range(1, 2001));
}

// Reads its port's own counts in every act: free + claimed + held must be the number of registers.
class AuditedNumbers : public Actor {
 public:
  AuditedNumbers() : Actor("audited") {}
  Out<int> out{this, "out", 4};
  size_t most_held = 0;

 private:
  Supply Poll() override { return next_ < 500 ? Supply::kReady : Supply::kEnd; }
  Status Act() override {
    out.Emit() = next_++;
    CHECK_EQ(out.num_free() + 1 + out.num_held_by(0), out.num_registers());
    most_held = std::max(most_held, out.num_held_by(0));
    return Status::Ok();
  }
  int next_ = 0;
};

TEST(credits_are_conserved_and_bound_what_is_under_way) {
  Graph graph;
  auto& numbers = graph.Add<AuditedNumbers>(graph.AddLane("a"));
  auto& collect = graph.Add<Collect>(graph.AddLane("b"));
  graph.Connect(numbers.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK_EQ(collect.values.size(), 500u);
  CHECK_EQ(numbers.out.num_free(), 4u);  // all home
  CHECK(numbers.most_held <= 3);         // the fourth was claimed
}

TEST(diamond_joins_what_it_forked) {
  Graph graph;
  Lane& lane = graph.AddLane("a");
  Lane& other = graph.AddLane("b");
  auto& numbers = graph.Add<Numbers>(lane, 300);
  auto& left = graph.Add<Apply>(lane, "left", Plus(0));
  auto& right = graph.Add<Apply>(other, "right", Plus(1));
  auto& sum = graph.Add<Sum>(other);
  auto& collect = graph.Add<Collect>(lane);
  graph.Connect(numbers.out, left.in);
  graph.Connect(numbers.out, right.in);
  graph.Connect(left.out, sum.left);
  graph.Connect(right.out, sum.right);
  graph.Connect(sum.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK_EQ(collect.values.size(), 300u);
  for (int i = 0; i < 300; ++i) CHECK_EQ(collect.values[i], 2 * i + 1);
}

TEST(a_register_read_by_three_is_free_after_the_third) {
  Graph graph;
  auto& numbers = graph.Add<Numbers>(graph.AddLane("source"), 400, 3);
  std::vector<Collect*> readers;
  for (int i = 0; i < 3; ++i) {
    readers.push_back(&graph.Add<Collect>(graph.AddLane("reader-" + std::to_string(i))));
    graph.Connect(numbers.out, readers.back()->in);
  }
  graph.Start();
  CHECK(graph.Wait().ok());
  for (Collect* reader : readers) CHECK(reader->values == Range(0, 400));  // no value was overwritten early
}

TEST(output_without_consumers_is_free_at_once) {
  Graph graph;
  auto& numbers = graph.Add<Numbers>(graph.AddLane("a"), 100, 1);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK_EQ(numbers.out.num_free(), 1u);
}

TEST(least_loaded_port_gives_each_register_to_one_consumer) {
  Graph graph;
  auto& numbers = graph.Add<Numbers>(graph.AddLane("source"), 1000, 4, Fanout::kLeastLoaded);
  auto& first = graph.Add<Collect>(graph.AddLane("first"), "first");
  auto& second = graph.Add<Collect>(graph.AddLane("second"), "second");
  graph.Connect(numbers.out, first.in);
  graph.Connect(numbers.out, second.in);
  std::promise<void> second_started, release;
  auto released = release.get_future().share();
  // The second stays in its first act until the first has done nearly everything, which a round robin would
  // not allow.
  second.before_act = [&, done = false]() mutable {
    if (done) return;
    done = true;
    released.wait();
  };
  first.before_act = [&] {
    if (first.values.size() == 900) release.set_value();
  };
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK_EQ(first.values.size() + second.values.size(), 1000u);
  CHECK(first.values.size() > 900);
  CHECK(second.values.size() >= 1);
}

TEST(merging_port_takes_from_several_producers_until_all_have_ended) {
  Graph graph;
  auto& collect = graph.Add<Collect>(graph.AddLane("sink"));
  for (int i = 0; i < 3; ++i) {
    graph.Connect(graph.Add<Numbers>(graph.AddLane("source-" + std::to_string(i)), 100 * (i + 1)).out,
                  collect.in);
  }
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK_EQ(collect.values.size(), 600u);
}

TEST(an_input_that_ends_early_ends_the_actor_and_returns_the_other_unread) {
  Graph graph;
  Lane& lane = graph.AddLane("a");
  auto& few = graph.Add<Numbers>(lane, 10);
  auto& many = graph.Add<Numbers>(lane, 100000);
  auto& sum = graph.Add<Sum>(lane);
  auto& collect = graph.Add<Collect>(lane);
  graph.Connect(few.out, sum.left);
  graph.Connect(many.out, sum.right);
  graph.Connect(sum.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK_EQ(collect.values.size(), 10u);
}

// One act per number, whether or not the slow consumer has credit for it.
class LossyNumbers : public Actor {
 public:
  LossyNumbers() : Actor("lossy") {}
  Out<int> out{this, "out", 1, Fanout::kEveryConsumer, Credit::kLossy};
  int num_sent = 0;
  static constexpr int kActs = 5000;

 private:
  Supply Poll() override { return next_ < kActs ? Supply::kReady : Supply::kEnd; }
  Status Act() override {
    if (int* value = out.TryEmit()) {
      *value = next_;
      ++num_sent;
    }
    ++next_;
    return Status::Ok();
  }
  int next_ = 0;
};

TEST(lossy_port_skips_and_counts_instead_of_waiting) {
  Graph graph;
  auto& numbers = graph.Add<LossyNumbers>(graph.AddLane("fast"));
  auto& collect = graph.Add<Collect>(graph.AddLane("slow"));
  graph.Connect(numbers.out, collect.in);
  graph.Start();
  CHECK(graph.Wait().ok());
  CHECK_EQ(static_cast<int>(collect.values.size()), numbers.num_sent);
  CHECK_EQ(numbers.num_sent + static_cast<int>(numbers.out.num_skipped()), LossyNumbers::kActs);
  CHECK(numbers.out.num_skipped() > 0);  // one burst of acts is longer than one credit
}

// An actor that could always fire shares its lane with one that is fed from the same lane or from another.
void CheckBusyLaneServesOthers(Flush flush, bool fed_from_another_lane) {
  Graph graph;
  Lane& busy_lane = graph.AddLane("busy", flush);
  Lane& feeding_lane = fed_from_another_lane ? graph.AddLane("feeding") : busy_lane;
  graph.Add<Numbers>(busy_lane, 1 << 30);  // nobody reads them: its credits are home at once
  auto& numbers = graph.Add<Numbers>(feeding_lane, 1000);
  auto& collect = graph.Add<Collect>(busy_lane);
  graph.Connect(numbers.out, collect.in);
  std::promise<void> served;
  collect.before_act = [&] {
    if (collect.values.size() == 999) served.set_value();
  };
  graph.Start();
  served.get_future().wait();
  graph.Cancel(Status(StatusCode::kCancelled, "enough"));
  CHECK(graph.Wait().code() == StatusCode::kCancelled);
  CHECK(collect.values == Range(0, 1000));
}

TEST(actor_that_never_rests_leaves_turns_to_others_on_its_lane) {
  CheckBusyLaneServesOthers(Flush::kBatched, /*fed_from_another_lane=*/false);
  CheckBusyLaneServesOthers(Flush::kEveryAct, /*fed_from_another_lane=*/false);
}

TEST(actor_that_never_rests_leaves_time_for_the_inbox_of_its_lane) {
  CheckBusyLaneServesOthers(Flush::kBatched, /*fed_from_another_lane=*/true);
  CheckBusyLaneServesOthers(Flush::kEveryAct, /*fed_from_another_lane=*/true);
}

struct Block {
  Lease lease;
  int number = 0;
};

// Two of these share one arena: the credits of each are the arena's free blocks.
class Filler : public Actor {
 public:
  Filler(Arena* arena, int count) : Actor("filler"), count_(count) {
    out.SetBacking([arena](Block* block) { return bool(block->lease = arena->TryAcquire()); });
  }
  Out<Block> out{this, "out", 64};

 private:
  Supply Poll() override { return next_ < count_ ? Supply::kReady : Supply::kEnd; }
  Status Act() override {
    Block& block = out.Emit();
    block.number = next_++;
    *reinterpret_cast<int*>(block.lease.data()) = block.number;
    return Status::Ok();
  }
  const int count_;
  int next_ = 0;
};

class BlockReader : public Actor {
 public:
  BlockReader() : Actor("reader") {}
  In<Block> in{this, "in"};
  int num_blocks = 0;

 private:
  Status Act() override {
    const Block& block = in.Get();
    ++num_blocks;
    CHECK_EQ(*reinterpret_cast<const int*>(block.lease.data()), block.number);
    kept_.push_back(block.lease);  // a lease may outlive its register
    if (kept_.size() == 2) kept_.clear();
    return Status::Ok();
  }
  void OnEnd() override { kept_.clear(); }
  std::vector<Lease> kept_;
};

TEST(leases_are_the_credits_of_a_backed_port) {
  auto arena = Arena::Create({.size_bytes = 3 * 4096, .block_bytes = 4096}).value().release();
  std::unique_ptr<Arena> owned(arena);
  Graph graph;
  auto& first = graph.Add<Filler>(graph.AddLane("fill-0"), arena, 500);
  auto& second = graph.Add<Filler>(graph.AddLane("fill-1"), arena, 500);
  auto& reader = graph.Add<BlockReader>(graph.AddLane("read"));
  graph.Connect(first.out, reader.in);
  graph.Connect(second.out, reader.in);
  arena->SetFreedListener([&] {
    first.Wake();
    second.Wake();
  });
  graph.Start();
  CHECK(graph.Wait().ok());
  graph.Close();
  arena->SetFreedListener(nullptr);
  CHECK_EQ(reader.num_blocks, 1000);
  CHECK_EQ(arena->free_blocks(), 3u);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
