#include "actor/actor_bench.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "actor/graph.h"

namespace elastates {
namespace {

constexpr int kChainRelays = 7;
constexpr size_t kChainCredits = 2;      // double buffering, as in a real pipeline
constexpr size_t kStreamCredits = 4096;  // enough to keep both lanes busy across a hand-over

class Counter : public Actor {
 public:
  Counter(uint64_t count, size_t credits) : Actor("counter"), out(this, "out", credits), count_(count) {}
  Out<uint64_t> out;

 private:
  Supply Poll() override { return next_ < count_ ? Supply::kReady : Supply::kEnd; }
  Status Act() override {
    out.Emit() = next_++;
    return Status::Ok();
  }
  const uint64_t count_;
  uint64_t next_ = 0;
};

class Relay : public Actor {
 public:
  Relay() : Actor("relay") {}
  In<uint64_t> in{this, "in"};
  Out<uint64_t> out{this, "out", kChainCredits};

 private:
  Status Act() override {
    out.Emit() = in.Get();
    return Status::Ok();
  }
};

class Sink : public Actor {
 public:
  Sink() : Actor("sink") {}
  In<uint64_t> in{this, "in"};

 private:
  Status Act() override {
    if (in.Get() != expected_++) return Status(StatusCode::kInternal, "a message was lost or overtaken");
    return Status::Ok();
  }
  uint64_t expected_ = 0;
};

double SecondsToDrain(Graph* graph) {
  auto begin = std::chrono::steady_clock::now();
  graph->Start();
  Status status = graph->Wait();
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status.ok() ? seconds : -1;  // a negative figure cannot be mistaken for a fast one
}

int64_t ResidentBytes() {
  long pages_total = 0, pages_resident = 0;
  FILE* statm = std::fopen("/proc/self/statm", "r");
  if (statm == nullptr) return 0;
  int fields = std::fscanf(statm, "%ld %ld", &pages_total, &pages_resident);
  std::fclose(statm);
  return fields == 2 ? pages_resident * sysconf(_SC_PAGESIZE) : 0;
}

}  // namespace

double SameThreadHopNs(uint64_t messages) {
  Graph graph;
  Lane& lane = graph.AddLane("bench");
  uint64_t per_edge = messages / (kChainRelays + 1);
  auto& counter = graph.Add<Counter>(lane, per_edge, kChainCredits);
  Out<uint64_t>* last = &counter.out;
  for (int i = 0; i < kChainRelays; ++i) {
    auto& relay = graph.Add<Relay>(lane);
    graph.Connect(*last, relay.in);
    last = &relay.out;
  }
  graph.Connect(*last, graph.Add<Sink>(lane).in);
  return SecondsToDrain(&graph) * 1e9 / static_cast<double>(per_edge * (kChainRelays + 1));
}

double CrossThreadMessagesPerS(uint64_t messages) {
  Graph graph;
  auto& counter = graph.Add<Counter>(graph.AddLane("bench-from"), messages, kStreamCredits);
  graph.Connect(counter.out, graph.Add<Sink>(graph.AddLane("bench-to")).in);
  return static_cast<double>(messages) / SecondsToDrain(&graph);
}

int64_t CrossThreadRssGrowthBytes(uint64_t messages) {
  (void)CrossThreadMessagesPerS(messages / 100);  // touches every page that a run needs
  int64_t before = ResidentBytes();
  (void)CrossThreadMessagesPerS(messages - messages / 100);
  return ResidentBytes() - before;
}

}  // namespace elastates
