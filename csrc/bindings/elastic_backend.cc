#include "bindings/elastic_backend.h"

namespace elastates {
namespace {

using c10d::OpType;

DataType TypeOf(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DataType::kFloat64;
    case at::kFloat:
      return DataType::kFloat32;
    case at::kHalf:
      return DataType::kFloat16;
    case at::kBFloat16:
      return DataType::kBfloat16;
    case at::kChar:
      return DataType::kInt8;
    case at::kShort:
      return DataType::kInt16;
    case at::kInt:
      return DataType::kInt32;
    case at::kLong:
      return DataType::kInt64;
    case at::kByte:
      return DataType::kUint8;
    case at::kUInt16:
      return DataType::kUint16;
    case at::kUInt32:
      return DataType::kUint32;
    case at::kUInt64:
      return DataType::kUint64;
    case at::kBool:
      return DataType::kBool;
    case at::kComplexFloat:
      return DataType::kComplex64;
    case at::kComplexDouble:
      return DataType::kComplex128;
    default:
      TORCH_CHECK(false, "elastic: tensors of ", tensor.scalar_type(),
                  " can be sent, but there is no reduction of them; convert them first");
  }
}

double FactorOf(const c10d::ReduceOp& op) {
  // The name that torch 2.11 has and later ones keep.
  const auto* factor = dynamic_cast<const c10d::NCCLPreMulSumSupplement*>(op.supplement_.get());
  TORCH_CHECK(factor != nullptr, "elastic: PREMUL_SUM without its factor");
  return factor->tensor_factor.defined() ? factor->tensor_factor.item().toDouble() : factor->double_factor;
}

Reduction ReductionOf(const c10d::ReduceOp& op) {
  switch (op.op_) {
    case c10d::ReduceOp::SUM:
      return {ReduceKind::kSum, 1};
    case c10d::ReduceOp::AVG:
      return {ReduceKind::kAvg, 1};
    case c10d::ReduceOp::PRODUCT:
      return {ReduceKind::kProduct, 1};
    case c10d::ReduceOp::MIN:
      return {ReduceKind::kMin, 1};
    case c10d::ReduceOp::MAX:
      return {ReduceKind::kMax, 1};
    case c10d::ReduceOp::BAND:
      return {ReduceKind::kBand, 1};
    case c10d::ReduceOp::BOR:
      return {ReduceKind::kBor, 1};
    case c10d::ReduceOp::BXOR:
      return {ReduceKind::kBxor, 1};
    case c10d::ReduceOp::PREMUL_SUM:
      return {ReduceKind::kPremulSum, FactorOf(op)};
    default:
      TORCH_CHECK(false, "elastic: unknown reduction ", static_cast<int>(op.op_));
  }
}

void CheckTensor(const at::Tensor& tensor, const char* title) {
  TORCH_CHECK(tensor.defined(), title, ": expected a tensor, got none");
  TORCH_CHECK(tensor.layout() == at::kStrided, title, ": sparse tensors are not supported, got ",
              tensor.layout(), "; use to_dense()");
  TORCH_CHECK(tensor.device().is_cpu() || tensor.device().is_cuda(), title,
              ": expected a tensor of cpu or cuda, got one of ", tensor.device());
}

const at::Tensor& Only(const Tensors& tensors, const char* title) {
  TORCH_CHECK(tensors.size() == 1, title, ": expected one tensor per process, got ", tensors.size());
  return tensors[0];
}

const Tensors& Only(const TensorLists& lists, const char* title) {
  TORCH_CHECK(lists.size() == 1, title, ": expected one list of tensors per process, got ", lists.size());
  return lists[0];
}

// Without split sizes whole rows are exchanged, equally many with each.
void CheckRows(const at::Tensor& tensor, const std::vector<int64_t>& lengths, int num_pieces,
               const char* title) {
  const int64_t length = tensor.dim() == 0 ? 1 : tensor.size(0);
  TORCH_CHECK(!lengths.empty() || length % num_pieces == 0, title, ": a first dimension of ", length,
              " cannot be cut into ", num_pieces, " equal parts; give split sizes");
}

// One piece cut into the lengths along the first dimension, or into equal ones if there are none.
std::vector<ElementSpan> Cut(const ElementSpan& piece, const at::Tensor& tensor,
                             const std::vector<int64_t>& lengths, int num_pieces, size_t element_bytes,
                             const char* title) {
  const int64_t length = tensor.dim() == 0 ? 1 : tensor.size(0);
  std::vector<size_t> counts(num_pieces, piece.count / num_pieces);
  if (lengths.empty()) {
    TORCH_CHECK(piece.count % num_pieces == 0, title, ": a tensor of ", tensor.numel(),
                " elements cannot be cut into ", num_pieces, " equal parts");
  } else {
    TORCH_CHECK(lengths.size() == counts.size(), title, ": expected ", num_pieces, " split sizes, got ",
                lengths.size());
    int64_t sum = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      TORCH_CHECK(lengths[i] >= 0, title, ": split size ", lengths[i]);
      counts[i] = length == 0 ? 0 : piece.count / length * lengths[i];
      sum += lengths[i];
    }
    TORCH_CHECK(sum == length, title, ": split sizes add up to ", sum, ", the tensor's first dimension is ",
                length);
  }
  std::vector<ElementSpan> pieces;
  char* data = piece.data;
  for (size_t count : counts) {
    pieces.push_back({data, count});
    data += count * element_bytes;
  }
  return pieces;
}

}  // namespace

struct ElasticBackend::Request {
  OpType type;
  const char* title;
  Tensors inputs, outputs;
  std::shared_ptr<Staging> staging = std::make_shared<Staging>();
  std::vector<Collective> collectives;

  Request(OpType op_type, const char* op_title) : type(op_type), title(op_title) {}

  Collective& Add(CollectiveKind kind, int64_t root = 0) {
    collectives.emplace_back();
    collectives.back().kind = kind;
    collectives.back().root = static_cast<int>(root);
    return collectives.back();
  }
  void Reduce(Collective& collective, const at::Tensor& tensor, const c10d::ReduceOp& op) {
    CheckTensor(tensor, title);
    collective.type = TypeOf(tensor);
    collective.reduction = ReductionOf(op);
    const Status status = CheckReduction(collective.type, collective.reduction);
    TORCH_CHECK(status.ok(), title, ": ", status.message());
  }
  ElementSpan Bytes(const at::Tensor& tensor, Staging::Direction direction) {
    CheckTensor(tensor, title);
    Remember(tensor, direction);
    return staging->AddBytes(tensor, direction);
  }
  ElementSpan Elements(const at::Tensor& tensor, Staging::Direction direction, DataType type) {
    CheckTensor(tensor, title);
    TORCH_CHECK(TypeOf(tensor) == type, title, ": tensors of ", NameOf(type), " and ", tensor.scalar_type());
    Remember(tensor, direction);
    return staging->AddElements(tensor, direction);
  }
  std::vector<ElementSpan> AllBytes(const Tensors& tensors, Staging::Direction direction) {
    std::vector<ElementSpan> pieces;
    for (const at::Tensor& tensor : tensors) pieces.push_back(Bytes(tensor, direction));
    return pieces;
  }

 private:
  void Remember(const at::Tensor& tensor, Staging::Direction direction) {
    if (direction & Staging::kIn) inputs.push_back(tensor);
    if (direction & Staging::kOut) outputs.push_back(tensor);
  }
};

ElasticBackend::ElasticBackend(std::shared_ptr<Endpoint> endpoint, std::shared_ptr<QueuedGroup> group,
                               std::chrono::milliseconds timeout)
    : Backend(group->rank(), static_cast<int>(group->view()->members.size())),
      endpoint_(std::move(endpoint)),
      group_(std::move(group)),
      timeout_(timeout) {}

c10::intrusive_ptr<c10d::Backend::Options> ElasticBackend::getBackendOptions() {
  return c10::make_intrusive<Options>("elastic", timeout_.load());
}

c10d::ErrorType ElasticBackend::getError() {
  return group_->why_revoked().empty() ? c10d::ErrorType::SUCCESS : c10d::ErrorType::REMOTE_ERROR;
}

void ElasticBackend::abort() { group_->Revoke("aborted by rank " + std::to_string(group_->rank())); }

void ElasticBackend::shutdown() { endpoint_->hub().CloseGroup(group_); }

void ElasticBackend::startCoalescing() {
  TORCH_CHECK(!coalesced_, "elastic: coalescing has begun already");
  coalesced_ = c10::make_intrusive<ElasticWork>(getRank(), OpType::COALESCED, "elastic:coalesced", Tensors(),
                                                Tensors(), 1);
}

WorkPtr ElasticBackend::endCoalescing() {
  TORCH_CHECK(coalesced_, "elastic: coalescing has not begun");
  const c10::intrusive_ptr<ElasticWork> work = std::move(coalesced_);
  coalesced_.reset();
  work->Complete(Status::Ok());
  return work;
}

double ElasticBackend::SecondsOf(std::chrono::milliseconds timeout) const {
  const std::chrono::milliseconds chosen = timeout.count() > 0 ? timeout : timeout_.load();
  return std::chrono::duration<double>(chosen).count();
}

// The collectives run one after another, as operations of the group; tensors are staged around them all.
WorkPtr ElasticBackend::Start(Request request, std::chrono::milliseconds timeout) {
  const size_t num_parts = request.collectives.size();
  for (const Collective& collective : request.collectives) {
    const Status status = CheckCollective(group_->rank(), Size(), collective);
    TORCH_CHECK(status.ok(), request.title, ": ", status.message());
  }
  const auto work =
      c10::make_intrusive<ElasticWork>(getRank(), request.type, request.title, std::move(request.inputs),
                                       std::move(request.outputs), static_cast<int>(num_parts));
  for (size_t i = 0; i < num_parts; ++i) {
    const bool is_first = i == 0, is_last = i + 1 == num_parts;
    const auto staging = request.staging;
    auto body = [staging, is_first, is_last, collective = std::move(request.collectives[i])](Operation& op) {
      if (is_first) staging->CopyIn();
      const Status status = RunCollective(op, collective);
      if (is_last && status.ok()) staging->CopyOut();
      return status;
    };
    group_->Run(std::move(body), SecondsOf(timeout), Completion(work));
  }
  return work;
}

QueuedGroup::Done ElasticBackend::Completion(const c10::intrusive_ptr<ElasticWork>& work) {
  const c10::intrusive_ptr<ElasticWork> coalesced = coalesced_;
  if (coalesced) coalesced->AddPart();
  return [work, coalesced](const Status& status) {
    work->Complete(status);
    if (coalesced) coalesced->Complete(status);
  };
}

// Messages between two members have no operation of the group that ends in time.
void ElasticBackend::Await(const c10::intrusive_ptr<ElasticWork>& work, const std::string& what) {
  const double patience_s = SecondsOf(c10d::kUnsetTimeout);
  const std::string why = "rank " + std::to_string(group_->rank()) + " waited longer than " +
                          c10::str(patience_s) + " s for " + what;
  work->SetPatience(patience_s, [why, weak = std::weak_ptr<QueuedGroup>(group_)] {
    if (const auto group = weak.lock()) group->RevokeSoon(why);
  });
}

WorkPtr ElasticBackend::broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) {
  Request request(OpType::BROADCAST, "elastic:broadcast");
  const bool is_root = options.rootRank == group_->rank();
  request.Add(CollectiveKind::kBroadcast, options.rootRank).out = {
      request.Bytes(Only(tensors, request.title), is_root ? Staging::kInOut : Staging::kOut)};
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) {
  Request request(OpType::ALLREDUCE, "elastic:all_reduce");
  const at::Tensor& tensor = Only(tensors, request.title);
  Collective& collective = request.Add(CollectiveKind::kAllReduce);
  request.Reduce(collective, tensor, options.reduceOp);
  collective.in = collective.out = {request.Elements(tensor, Staging::kInOut, collective.type)};
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::allreduce_sparse(Tensors&, const c10d::AllreduceOptions&) {
  TORCH_CHECK(false, "elastic:all_reduce: sparse tensors are not supported; use to_dense()");
}

WorkPtr ElasticBackend::allreduce_coalesced(Tensors& tensors,
                                            const c10d::AllreduceCoalescedOptions& options) {
  Request request(OpType::ALLREDUCE_COALESCED, "elastic:all_reduce_coalesced");
  for (const at::Tensor& tensor : tensors) {
    Collective& collective = request.Add(CollectiveKind::kAllReduce);
    request.Reduce(collective, tensor, options.reduceOp);
    collective.in = collective.out = {request.Elements(tensor, Staging::kInOut, collective.type)};
  }
  if (tensors.empty()) request.Add(CollectiveKind::kBarrier);
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::reduce(Tensors& tensors, const c10d::ReduceOptions& options) {
  Request request(OpType::REDUCE, "elastic:reduce");
  const at::Tensor& tensor = Only(tensors, request.title);
  const bool is_root = options.rootRank == group_->rank();
  Collective& collective = request.Add(CollectiveKind::kReduce, options.rootRank);
  request.Reduce(collective, tensor, options.reduceOp);
  collective.in = {request.Elements(tensor, is_root ? Staging::kInOut : Staging::kIn, collective.type)};
  if (is_root) collective.out = collective.in;
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::allgather(TensorLists& outputs, Tensors& inputs,
                                  const c10d::AllgatherOptions& options) {
  Request request(OpType::ALLGATHER, "elastic:all_gather");
  Collective& collective = request.Add(CollectiveKind::kAllGather);
  collective.in = {request.Bytes(Only(inputs, request.title), Staging::kIn)};
  collective.out = request.AllBytes(Only(outputs, request.title), Staging::kOut);
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                        const c10d::AllgatherOptions& options) {
  Tensors outputs{output}, inputs{input};
  return allgather_into_tensor_coalesced(outputs, inputs, options);
}

WorkPtr ElasticBackend::allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                                            const c10d::AllgatherOptions& options) {
  Request request(OpType::ALLGATHER_COALESCED, "elastic:all_gather_coalesced");
  for (size_t i = 0; i < inputs.size(); ++i) {
    Collective& collective = request.Add(CollectiveKind::kAllGather);
    collective.in = {request.Bytes(inputs[i], Staging::kIn)};
    for (const Tensors& of_rank : outputs) {
      TORCH_CHECK(of_rank.size() == inputs.size(), request.title, ": ", inputs.size(), " inputs and ",
                  of_rank.size(), " outputs");
      collective.out.push_back(request.Bytes(of_rank[i], Staging::kOut));
    }
  }
  if (inputs.empty()) request.Add(CollectiveKind::kBarrier);
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                        const c10d::AllgatherOptions& options) {
  Request request(OpType::_ALLGATHER_BASE, "elastic:all_gather_into_tensor");
  TORCH_CHECK(outputs.size() == inputs.size(), request.title, ": ", inputs.size(), " inputs and ",
              outputs.size(), " outputs");
  for (size_t i = 0; i < inputs.size(); ++i) {
    Collective& collective = request.Add(CollectiveKind::kAllGather);
    collective.in = {request.Bytes(inputs[i], Staging::kIn)};
    const ElementSpan output = request.Bytes(outputs[i], Staging::kOut);
    collective.out = Cut(output, outputs[i], {}, Size(), 1, request.title);
  }
  if (inputs.empty()) request.Add(CollectiveKind::kBarrier);
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::gather(TensorLists& outputs, Tensors& inputs, const c10d::GatherOptions& options) {
  Request request(OpType::GATHER, "elastic:gather");
  Collective& collective = request.Add(CollectiveKind::kGather, options.rootRank);
  collective.in = {request.Bytes(Only(inputs, request.title), Staging::kIn)};
  if (options.rootRank == group_->rank()) {
    collective.out = request.AllBytes(Only(outputs, request.title), Staging::kOut);
  }
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::scatter(Tensors& outputs, TensorLists& inputs, const c10d::ScatterOptions& options) {
  Request request(OpType::SCATTER, "elastic:scatter");
  Collective& collective = request.Add(CollectiveKind::kScatter, options.rootRank);
  collective.out = {request.Bytes(Only(outputs, request.title), Staging::kOut)};
  if (options.rootRank == group_->rank()) {
    collective.in = request.AllBytes(Only(inputs, request.title), Staging::kIn);
  }
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::reduce_scatter(Tensors& outputs, TensorLists& inputs,
                                       const c10d::ReduceScatterOptions& options) {
  Request request(OpType::REDUCE_SCATTER, "elastic:reduce_scatter");
  const at::Tensor& output = Only(outputs, request.title);
  Collective& collective = request.Add(CollectiveKind::kReduceScatter);
  request.Reduce(collective, output, options.reduceOp);
  for (const at::Tensor& input : Only(inputs, request.title)) {
    collective.in.push_back(request.Elements(input, Staging::kIn, collective.type));
  }
  collective.out = {request.Elements(output, Staging::kOut, collective.type)};
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                             const c10d::ReduceScatterOptions& options) {
  Tensors outputs{output}, inputs{input};
  return reduce_scatter_tensor_coalesced(outputs, inputs, options);
}

WorkPtr ElasticBackend::reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                        const c10d::ReduceScatterOptions& options) {
  Request request(OpType::_REDUCE_SCATTER_BASE, "elastic:reduce_scatter_tensor");
  TORCH_CHECK(outputs.size() == inputs.size(), request.title, ": ", inputs.size(), " inputs and ",
              outputs.size(), " outputs");
  for (size_t i = 0; i < inputs.size(); ++i) {
    Collective& collective = request.Add(CollectiveKind::kReduceScatter);
    request.Reduce(collective, outputs[i], options.reduceOp);
    const ElementSpan input = request.Elements(inputs[i], Staging::kIn, collective.type);
    collective.in = Cut(input, inputs[i], {}, Size(), SizeOf(collective.type), request.title);
    collective.out = {request.Elements(outputs[i], Staging::kOut, collective.type)};
  }
  if (inputs.empty()) request.Add(CollectiveKind::kBarrier);
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::alltoall_base(at::Tensor& output, at::Tensor& input,
                                      std::vector<int64_t>& output_splits, std::vector<int64_t>& input_splits,
                                      const c10d::AllToAllOptions& options) {
  Request request(OpType::ALLTOALL_BASE, "elastic:all_to_all_single");
  Collective& collective = request.Add(CollectiveKind::kAllToAll);
  const ElementSpan in = request.Bytes(input, Staging::kIn), out = request.Bytes(output, Staging::kOut);
  CheckRows(input, input_splits, Size(), request.title);
  CheckRows(output, output_splits, Size(), request.title);
  collective.in = Cut(in, input, input_splits, Size(), 1, request.title);
  collective.out = Cut(out, output, output_splits, Size(), 1, request.title);
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) {
  Request request(OpType::ALLTOALL, "elastic:all_to_all");
  Collective& collective = request.Add(CollectiveKind::kAllToAll);
  collective.in = request.AllBytes(inputs, Staging::kIn);
  collective.out = request.AllBytes(outputs, Staging::kOut);
  return Start(std::move(request), options.timeout);
}

WorkPtr ElasticBackend::barrier(const c10d::BarrierOptions& options) {
  Request request(OpType::BARRIER, "elastic:barrier");
  request.Add(CollectiveKind::kBarrier);
  return Start(std::move(request), options.timeout);
}

// Rank 0 hears from each, so that its error names all who have not come, and then lets them go.
void ElasticBackend::monitoredBarrier(const c10d::BarrierOptions& options, bool) {
  Request request(OpType::BARRIER, "elastic:monitored_barrier");
  const at::Tensor bytes = at::zeros({Size() + 1}, at::kByte);
  Collective gather = {CollectiveKind::kGather};
  gather.in = {request.Bytes(bytes.narrow(0, 0, 1), Staging::kIn)};
  if (group_->rank() == 0) gather.out = request.AllBytes(bytes.narrow(0, 1, Size()).split(1), Staging::kOut);
  Collective release = {CollectiveKind::kBroadcast};
  release.out = gather.in;
  request.collectives = {gather, release};
  Start(std::move(request), options.timeout)->wait(kNoTimeout);
}

WorkPtr ElasticBackend::send(Tensors& tensors, int to, int tag) {
  Request request(OpType::SEND, "elastic:send");
  const ElementSpan piece = request.Bytes(Only(tensors, request.title), Staging::kIn);
  const auto work =
      c10::make_intrusive<ElasticWork>(getRank(), request.type, request.title, request.inputs, Tensors(), 1);
  const auto staging = request.staging;
  staging->CopyIn();
  Await(work, "rank " + std::to_string(to) + " to receive");
  group_->Send(to, static_cast<uint32_t>(tag), piece.data, piece.count,
               [staging, done = Completion(work)](const Status& status) { done(status); });
  return work;
}

WorkPtr ElasticBackend::recv(Tensors& tensors, int from, int tag) {
  Request request(OpType::RECV, "elastic:recv");
  const ElementSpan piece = request.Bytes(Only(tensors, request.title), Staging::kOut);
  const auto work =
      c10::make_intrusive<ElasticWork>(getRank(), request.type, request.title, Tensors(), request.outputs, 1);
  work->SetSource(from);
  const auto staging = request.staging;
  Await(work, "rank " + std::to_string(from) + " to send");
  group_->Receive(from, static_cast<uint32_t>(tag), piece.data, piece.count,
                  [staging, done = Completion(work)](const Status& status) {
                    if (status.ok()) staging->CopyOut();
                    done(status);
                  });
  return work;
}

WorkPtr ElasticBackend::recvAnysource(Tensors& tensors, int tag) {
  Request request(OpType::RECVANYSOURCE, "elastic:recv");
  const ElementSpan piece = request.Bytes(Only(tensors, request.title), Staging::kOut);
  const auto work =
      c10::make_intrusive<ElasticWork>(getRank(), request.type, request.title, Tensors(), request.outputs, 1);
  const auto staging = request.staging;
  Await(work, "anybody to send");
  group_->ReceiveAny(static_cast<uint32_t>(tag), piece.data, piece.count,
                     [work, staging, done = Completion(work)](const Status& status, int from) {
                       work->SetSource(from);
                       if (status.ok()) staging->CopyOut();
                       done(status);
                     });
  return work;
}

}  // namespace elastates
