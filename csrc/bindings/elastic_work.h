// ElasticWork: what a caller holds of an operation in progress; Staging: its tensors as plain host memory.
#ifndef ELASTATES_BINDINGS_ELASTIC_WORK_H_
#define ELASTATES_BINDINGS_ELASTIC_WORK_H_

#include <ATen/ATen.h>
#include <c10/core/Event.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "base/status.h"
#include "comm/collectives/collectives.h"

namespace elastates {

// Contiguous host memory for each tensor of an operation: the tensor's own where it is that, else a buffer.
// Add tensors on the caller's thread; copy on the thread that does the operation. Tensors of CUDA go through
// pinned memory on a stream of their own, behind what the caller's stream holds when the operation is asked
// for.
class Staging {
 public:
  enum Direction { kIn = 1, kOut = 2, kInOut = 3 };

  // The memory that stands for `tensor` until CopyOut(), in bytes or in elements of its type.
  ElementSpan AddBytes(const at::Tensor& tensor, Direction direction);
  ElementSpan AddElements(const at::Tensor& tensor, Direction direction);

  void CopyIn();
  void CopyOut();

 private:
  struct Staged {
    at::Tensor tensor, host;
    Direction direction;
  };

  void Copy(Direction direction);

  std::vector<at::Tensor> held_;  // used as they are
  std::vector<Staged> staged_;
  std::optional<c10::Event> asked_for_;  // of the caller's CUDA stream
};

class ElasticWork : public c10d::Work {
 public:
  // `outputs` is what result() and the future give. Complete() is due once per part.
  ElasticWork(int rank, c10d::OpType type, const char* title, std::vector<at::Tensor> inputs,
              std::vector<at::Tensor> outputs, int num_parts);

  // One more part, REQUIRES: not all are complete.
  void AddPart() { num_parts_.fetch_add(1); }
  // The last part ends the work; the first error of a part is its outcome. From any thread.
  void Complete(const Status& status);
  // wait() without a time calls `on_late` once it has waited for so long, and waits on: for the work to fail.
  // REQUIRES: nobody waits yet.
  void SetPatience(double patience_s, std::function<void()> on_late);
  void SetSource(int rank) { source_rank_ = rank; }

  bool wait(std::chrono::milliseconds timeout) override;
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  std::vector<at::Tensor> result() override { return outputs_; }
  int sourceRank() const override { return source_rank_; }

 private:
  const std::string title_;
  const std::vector<at::Tensor> outputs_;
  const c10::intrusive_ptr<c10::ivalue::Future> future_;
  std::chrono::milliseconds patience_{0};
  std::function<void()> on_late_;
  std::atomic<int> num_parts_;
  std::atomic<int> source_rank_{-1};
  std::mutex first_error_mutex_;
  Status first_error_;  // guarded by first_error_mutex_
};

}  // namespace elastates

#endif  // ELASTATES_BINDINGS_ELASTIC_WORK_H_
