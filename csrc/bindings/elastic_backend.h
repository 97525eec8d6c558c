// ElasticBackend: torch.distributed's operations, as collectives and messages of one group.
//
// Holds nothing of a view but what the base class wants of it (its rank and size, constants before
// torch 2.15): the process group makes a new one after an edit. Thread-safe where the base class is.
#ifndef ELASTATES_BINDINGS_ELASTIC_BACKEND_H_
#define ELASTATES_BINDINGS_ELASTIC_BACKEND_H_

#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "bindings/elastic_work.h"
#include "comm/endpoint.h"

namespace elastates {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using Tensors = std::vector<at::Tensor>;
using TensorLists = std::vector<Tensors>;

class ElasticBackend : public c10d::Backend {
 public:
  ElasticBackend(std::shared_ptr<Endpoint> endpoint, std::shared_ptr<QueuedGroup> group,
                 std::chrono::milliseconds timeout);

  const std::shared_ptr<Endpoint>& endpoint() const { return endpoint_; }
  const std::shared_ptr<QueuedGroup>& group() const { return group_; }
  std::chrono::milliseconds timeout() const { return timeout_; }

  const std::string getBackendName() const override { return "elastic"; }
  c10::intrusive_ptr<Options> getBackendOptions() override;
  void setTimeout(std::chrono::milliseconds timeout) override { timeout_ = timeout; }
  c10d::ErrorType getError() override;
  void abort() override;     // recoverable: as a revocation
  void shutdown() override;  // final

  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override;
  WorkPtr endCoalescing() override;

  void setSequenceNumberForGroup() override {}  // all begin at 0 in every epoch
  uint64_t getSequenceNumberForGroup() override { return group_->sequence(); }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override;
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  WorkPtr allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override;
  WorkPtr allgather(TensorLists& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& options) override;
  WorkPtr allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& options) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override;
  WorkPtr gather(TensorLists& outputs, Tensors& inputs, const c10d::GatherOptions& options) override;
  WorkPtr scatter(Tensors& outputs, TensorLists& inputs, const c10d::ScatterOptions& options) override;
  WorkPtr reduce_scatter(Tensors& outputs, TensorLists& inputs,
                         const c10d::ReduceScatterOptions& options) override;
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override;
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits, const c10d::AllToAllOptions& options) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override;
  WorkPtr barrier(const c10d::BarrierOptions& options) override;
  void monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all_ranks) override;

  WorkPtr send(Tensors& tensors, int to, int tag) override;
  WorkPtr recv(Tensors& tensors, int from, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;

 private:
  struct Request;  // a work with the collectives that it consists of

  int Size() const { return static_cast<int>(group_->view()->members.size()); }
  double SecondsOf(std::chrono::milliseconds timeout) const;
  WorkPtr Start(Request request, std::chrono::milliseconds timeout);
  // Ends a part of the work, and of what is being coalesced if something is.
  QueuedGroup::Done Completion(const c10::intrusive_ptr<ElasticWork>& work);
  // Whoever waits for the work for too long revokes the group.
  void Await(const c10::intrusive_ptr<ElasticWork>& work, const std::string& what);

  const std::shared_ptr<Endpoint> endpoint_;
  const std::shared_ptr<QueuedGroup> group_;
  std::atomic<std::chrono::milliseconds> timeout_;
  c10::intrusive_ptr<ElasticWork>
      coalesced_;  // of all that starts between start and end; one caller's thread
};

}  // namespace elastates

#endif  // ELASTATES_BINDINGS_ELASTIC_BACKEND_H_
