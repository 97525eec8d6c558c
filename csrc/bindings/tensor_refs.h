// TensorRefs: the tensors of one checkpoint, held and watched from the call to the end of the copy.
//
// Owns a detached alias of every tensor, so that memory stays where it is whatever Python does with the
// originals, and no reference to a Python object, so that any thread may drop it. Immutable after
// construction; thread-safe.
#ifndef ELASTATES_BINDINGS_TENSOR_REFS_H_
#define ELASTATES_BINDINGS_TENSOR_REFS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/status.h"
#include "copy/device_copy.h"

namespace elastates {

// A stretch of one tensor's bytes and the checksum it had when the checkpoint was taken.
struct Sample {
  size_t tensor;
  uint64_t begin, end;  // bytes within the tensor
  uint32_t crc;
};

class TensorRefs {
 public:
  TensorRefs();
  ~TensorRefs();
  TensorRefs(const TensorRefs&) = delete;
  TensorRefs& operator=(const TensorRefs&) = delete;

  size_t size() const;
  const char* data(size_t tensor) const;
  uint64_t nbytes(size_t tensor) const;
  int device(size_t tensor) const;  // CUDA device index, -1 for host memory
  uint32_t group(size_t tensor) const;
  const std::vector<Sample>& samples() const;
  const std::vector<std::shared_ptr<DeviceEvent>>& producer_events() const;

  // Checksum of the tensor's bytes as they are now.
  uint32_t Crc(size_t tensor) const;

  // Tensors of `group` whose version counter or sampled bytes are no longer those of the construction.
  std::vector<size_t> Mutated(uint32_t group) const;
  Status CheckUnchanged(uint32_t group) const;

 private:
  friend class TensorRefsBuilder;
  friend class TensorSet;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace elastates

#endif  // ELASTATES_BINDINGS_TENSOR_REFS_H_
