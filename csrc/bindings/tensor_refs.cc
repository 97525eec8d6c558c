// The one file that looks inside torch tensors.
#include "bindings/tensor_refs.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/crc32c.h"
#include "bindings/bindings.h"

namespace elastates {

struct TensorRefs::State {
  struct Ref {
    at::Tensor alias;  // detached: shares memory and version counter, owns no Python object; none if copied
    const char* data;
    uint64_t nbytes;
    int device;
    uint32_t group;
    uint32_t version;
  };
  std::vector<Ref> refs;
  at::Tensor copied;  // memory of what was copied at the call
  std::vector<Sample> samples;
  std::vector<std::shared_ptr<DeviceEvent>> producer_events;
};

namespace {

constexpr uint64_t kFull = ~uint64_t{0};
constexpr uint32_t kCopied = ~uint32_t{0};  // group of a copy that stands in, until all copies are made

// Inference tensors have no counter.
uint32_t VersionOf(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : static_cast<uint32_t>(tensor._version());
}

uint32_t CrcOfBytes(const at::Tensor& tensor, const char* data, uint64_t begin, uint64_t end) {
  if (!tensor.defined() || tensor.is_cpu()) return Crc32c(data + begin, end - begin);
  at::NoGradGuard no_grad;
  at::Tensor bytes = at::from_blob(const_cast<char*>(data) + begin, {static_cast<int64_t>(end - begin)},
                                   at::TensorOptions().dtype(at::kByte).device(tensor.device()));
  at::Tensor host = bytes.cpu();
  return Crc32c(host.data_ptr(), end - begin);
}

}  // namespace

class TensorRefsBuilder {
 public:
  static Status Finish(const std::vector<std::pair<int, uint64_t>>& streams, uint64_t sample_begin,
                       uint64_t sample_bytes, TensorRefs::State* state) {
    Status recorded = RecordStreams(streams, state);
    if (recorded.ok()) TakeSamples(sample_begin, sample_bytes, state);
    return recorded;
  }

 private:
  static Status RecordStreams(const std::vector<std::pair<int, uint64_t>>& streams,
                              TensorRefs::State* state) {
    for (const auto& [device, stream] : streams) {
      Result<std::shared_ptr<DeviceEvent>> event =
          DeviceEvent::Record(device, reinterpret_cast<void*>(stream));
      if (!event.ok()) return event.status();
      if (state->producer_events.size() <= static_cast<size_t>(device)) {
        state->producer_events.resize(device + 1);
      }
      state->producer_events[device] = std::move(event).value();
    }
    return Status::Ok();
  }

  // The watched tensors' bytes, laid end to end, are a ring; the window [begin, begin + bytes) of it is
  // checksummed.
  static void TakeSamples(uint64_t begin, uint64_t bytes, TensorRefs::State* state) {
    uint64_t total = 0;
    for (const auto& ref : state->refs) total += ref.group != 0 ? ref.nbytes : 0;
    if (total == 0 || bytes == 0) return;
    begin = bytes == kFull || bytes >= total ? 0 : begin % total;
    const uint64_t end = bytes == kFull || bytes >= total ? total : begin + bytes;
    AddWindow(begin, std::min(end, total), state);
    if (end > total) AddWindow(0, end - total, state);
  }

  static void AddWindow(uint64_t begin, uint64_t end, TensorRefs::State* state) {
    uint64_t at = 0;
    for (size_t i = 0; i < state->refs.size() && at < end; ++i) {
      const auto& ref = state->refs[i];
      if (ref.group == 0) continue;
      const uint64_t low = std::max(begin, at), high = std::min(end, at + ref.nbytes);
      if (low < high) {
        state->samples.push_back(
            {i, low - at, high - at, CrcOfBytes(ref.alias, ref.data, low - at, high - at)});
      }
      at += ref.nbytes;
    }
  }
};

// The live tensors of a structure, from which each checkpoint's TensorRefs are made without asking Python
// again.
//
// Belongs to Python and is used under the GIL. An alias is kept for as long as its tensor stays where it is.
class TensorSet {
 public:
  TensorSet(const py::sequence& tensors, const Array<uint32_t>& groups) {
    const size_t count = tensors.size();
    if (static_cast<size_t>(groups.size()) != count) throw py::value_error("one group per tensor expected");
    originals_.reserve(count);
    refs_.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      originals_.push_back(tensors[i]);
      refs_.push_back(MakeRef(Unpack(originals_[i], i), groups.at(i), i));
    }
  }

  // Whether some tensor has other memory, another dtype or another shape than when the set was made, although
  // it is the same Python object: `p.data = ...`, `module.to(dtype)` and torch.utils.swap_tensors do that.
  // What was derived from it (ties, boxes, sizes) is void then.
  bool Moved() const {
    for (size_t i = 0; i < refs_.size(); ++i) {
      const at::Tensor& now = THPVariable_Unpack(originals_[i].ptr());
      const at::Tensor& then = refs_[i].alias;
      if (now.data_ptr() != refs_[i].data || now.scalar_type() != then.scalar_type() ||
          now.sizes() != then.sizes() || now.strides() != then.strides()) {
        return true;
      }
    }
    return false;
  }

  // REQUIRES: !Moved().
  // Tensors of group 0 are copied now: `copies` stand in for those that are not contiguous host memory.
  std::shared_ptr<TensorRefs> Hold(const std::vector<std::pair<size_t, py::object>>& copies,
                                   uint64_t sample_begin, uint64_t sample_bytes,
                                   const std::vector<std::pair<int, uint64_t>>& streams) {
    for (auto& ref : refs_) ref.version = VersionOf(ref.alias);
    auto held = std::make_shared<TensorRefs>();
    held->state_->refs = refs_;
    for (const auto& [index, copy] : copies) {
      held->state_->refs.at(index) = MakeRef(Unpack(copy, index), kCopied, index);
    }
    Status recorded;
    {
      py::gil_scoped_release release;
      CopyNow(held->state_.get());
      recorded = TensorRefsBuilder::Finish(streams, sample_begin, sample_bytes, held->state_.get());
    }
    RaiseIfFailed(recorded);
    return held;
  }

 private:
  // Into one buffer, which lives as long as these refs.
  static void CopyNow(TensorRefs::State* state) {
    uint64_t total = 0;
    for (const auto& ref : state->refs) total += ref.group == 0 ? Padded(ref.nbytes) : 0;
    if (total > 0) {
      state->copied = at::empty({static_cast<int64_t>(total)}, at::TensorOptions().dtype(at::kByte));
      char* free = static_cast<char*>(state->copied.data_ptr());
      for (auto& ref : state->refs) {
        if (ref.group != 0) continue;
        if (ref.nbytes > 0) std::memcpy(free, ref.data, ref.nbytes);
        ref.data = free;
        free += Padded(ref.nbytes);
        ref.alias = at::Tensor();
      }
    }
    for (auto& ref : state->refs) ref.group = ref.group == kCopied ? 0 : ref.group;
  }

  static uint64_t Padded(uint64_t nbytes) { return (nbytes + 63) / 64 * 64; }

  static at::Tensor Unpack(const py::object& item, size_t i) {
    if (!THPVariable_Check(item.ptr())) throw py::type_error("tensor expected at " + std::to_string(i));
    return THPVariable_Unpack(item.ptr());
  }

  static TensorRefs::State::Ref MakeRef(const at::Tensor& tensor, uint32_t group, size_t i) {
    if (tensor.layout() != at::kStrided || (group != 0 && !tensor.is_contiguous())) {
      throw py::value_error("contiguous strided tensor expected at " + std::to_string(i));
    }
    const bool cuda = tensor.is_cuda();
    if (!cuda && !tensor.is_cpu())
      throw py::value_error("CPU or CUDA tensor expected at " + std::to_string(i));
    return {tensor.detach(),
            static_cast<const char*>(tensor.data_ptr()),
            static_cast<uint64_t>(tensor.nbytes()),
            cuda ? static_cast<int>(tensor.get_device()) : -1,
            group,
            VersionOf(tensor)};
  }

  std::vector<py::object> originals_;
  std::vector<TensorRefs::State::Ref> refs_;
};

TensorRefs::TensorRefs() : state_(std::make_unique<State>()) {}
TensorRefs::~TensorRefs() = default;

size_t TensorRefs::size() const { return state_->refs.size(); }
const char* TensorRefs::data(size_t tensor) const { return state_->refs[tensor].data; }
uint64_t TensorRefs::nbytes(size_t tensor) const { return state_->refs[tensor].nbytes; }
int TensorRefs::device(size_t tensor) const { return state_->refs[tensor].device; }
uint32_t TensorRefs::group(size_t tensor) const { return state_->refs[tensor].group; }
const std::vector<Sample>& TensorRefs::samples() const { return state_->samples; }
const std::vector<std::shared_ptr<DeviceEvent>>& TensorRefs::producer_events() const {
  return state_->producer_events;
}

uint32_t TensorRefs::Crc(size_t tensor) const {
  const State::Ref& ref = state_->refs[tensor];
  return CrcOfBytes(ref.alias, ref.data, 0, ref.nbytes);
}

std::vector<size_t> TensorRefs::Mutated(uint32_t group) const {
  std::vector<size_t> mutated;
  for (size_t i = 0; i < state_->refs.size(); ++i) {
    const State::Ref& ref = state_->refs[i];
    if (ref.group == group && VersionOf(ref.alias) != ref.version) mutated.push_back(i);
  }
  for (const Sample& sample : state_->samples) {
    const State::Ref& ref = state_->refs[sample.tensor];
    if (ref.group == group && CrcOfBytes(ref.alias, ref.data, sample.begin, sample.end) != sample.crc) {
      mutated.push_back(sample.tensor);
    }
  }
  std::sort(mutated.begin(), mutated.end());
  mutated.erase(std::unique(mutated.begin(), mutated.end()), mutated.end());
  return mutated;
}

// The message of a failure lists the indices of the mutated tensors.
// Group 0 was copied when the checkpoint was taken: it is ours, and nobody writes to it.
Status TensorRefs::CheckUnchanged(uint32_t group) const {
  if (group == 0) return Status::Ok();
  const std::vector<size_t> mutated = Mutated(group);
  if (mutated.empty()) return Status::Ok();
  std::string
      indices;  // the caller knows the names; who reads the tensors later would find more of them changed
  for (size_t tensor : mutated) indices += (indices.empty() ? "" : ",") + std::to_string(tensor);
  return Status(StatusCode::kMutated, indices);
}

void BindTensorRefs(py::module_& m) {
  py::class_<TensorSet>(m, "TensorSet", "The live tensors of one structure of state.")
      .def(py::init<const py::sequence&, const Array<uint32_t>&>(), py::arg("tensors"), py::arg("groups"),
           "groups: [tensors] uint32; 0 for those that every checkpoint copies when it is taken, and only "
           "those\n"
           "need not be contiguous.")
      .def("moved", &TensorSet::Moved,
           "Whether a tensor has other memory, another dtype or another shape than when the set was made.")
      .def("hold", &TensorSet::Hold, py::arg("copies"), py::arg("sample_begin"), py::arg("sample_bytes"),
           py::arg("streams"),
           "A TensorRefs of the tensors as they are now; copies: (index, tensor) to hold in their stead.\n"
           "The window of sample_bytes at sample_begin of the others is checksummed (2**64-1: everything).\n"
           "streams: (device, cudaStream_t) pairs whose work so far produces the values.");
  py::class_<TensorRefs, std::shared_ptr<TensorRefs>>(
      m, "TensorRefs", "Tensors of one checkpoint, held and watched until they have been copied.")
      .def(
          "samples",
          [](const TensorRefs& refs) {
            py::list out;
            for (const Sample& s : refs.samples())
              out.append(py::make_tuple(s.tensor, s.begin, s.end, s.crc));
            return out;
          },
          "(tensor, begin, end, crc32c) of every sampled stretch.")
      .def(
          "crc32c",
          [](const TensorRefs& refs, const std::vector<size_t>& indices) {
            std::vector<uint32_t> out;
            for (size_t i : indices) out.push_back(refs.Crc(i));
            return out;
          },
          py::arg("indices"), py::call_guard<py::gil_scoped_release>(),
          "Checksums of whole tensors, as they are now.");
}

}  // namespace elastates
