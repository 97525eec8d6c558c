// Small actors that the tests of the actor core are put together from.
#ifndef ELASTATES_TESTS_CSRC_ACTOR_PARTS_H_
#define ELASTATES_TESTS_CSRC_ACTOR_PARTS_H_

#include <atomic>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "actor/graph.h"

namespace elastates {

// 0, 1, 2, ... as fast as its credits allow.
class Numbers : public Actor {
 public:
  explicit Numbers(int count, size_t credits = 2, Fanout fanout = Fanout::kEveryConsumer)
      : Actor("numbers"), out(this, "out", credits, fanout), count_(count) {}
  Out<int> out;

 private:
  Supply Poll() override { return next_ < count_ ? Supply::kReady : Supply::kEnd; }
  Status Act() override {
    out.Emit() = next_++;
    return Status::Ok();
  }
  const int count_;
  int next_ = 0;
};

// Applies a function that may fail.
class Apply : public Actor {
 public:
  using Function = std::function<Status(int in, int* out)>;
  Apply(std::string name, Function function, size_t credits = 2)
      : Actor(std::move(name)), out(this, "out", credits), function_(std::move(function)) {}
  In<int> in{this, "in"};
  Out<int> out;

 private:
  Status Act() override { return function_(in.Get(), &out.Emit()); }
  const Function function_;
};

inline Apply::Function Plus(int n) {
  return [n](int in, int* out) {
    *out = in + n;
    return Status::Ok();
  };
}

// Adds what arrives on two in-ports.
class Sum : public Actor {
 public:
  Sum() : Actor("sum") {}
  In<int> left{this, "left"};
  In<int> right{this, "right"};
  Out<int> out{this, "out", 2};

 private:
  Status Act() override {
    out.Emit() = left.Get() + right.Get();
    return Status::Ok();
  }
};

// Keeps what arrives; `values` and `num_errors` may be read when the graph has ended.
class Collect : public Actor {
 public:
  explicit Collect(std::string name = "collect") : Actor(std::move(name)) {}
  In<int> in{this, "in"};
  std::vector<int> values;
  int num_errors = 0;
  bool ended = false;
  std::function<void()> before_act = [] {};

 private:
  Status Act() override {
    before_act();
    values.push_back(in.Get());
    return Status::Ok();
  }
  void Drain() override { ++num_errors; }
  void OnEnd() override { ended = true; }
};

}  // namespace elastates

#endif  // ELASTATES_TESTS_CSRC_ACTOR_PARTS_H_
