// copy/device_copy.h on the CUDA runtime.
#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "copy/device_copy.h"

namespace elastates {
namespace {

Status FromCuda(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return Status::Ok();
  // The runtime keeps the last error that is not fatal, and torch would find it in its next check.
  (void)cudaGetLastError();
  const bool nothing_there = error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver;
  const bool full = error == cudaErrorMemoryAllocation;
  const StatusCode code = nothing_there ? StatusCode::kInvalidArgument
                          : full        ? StatusCode::kResourceExhausted
                                        : StatusCode::kInternal;
  return Status(code, what + ": CUDA: " + cudaGetErrorString(error));
}

// Makes a device current on this thread, and the one before again. Streams and events belong to a device; the
// thread may be the trainer's, whose choice must not change under it.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : status_(Choose(device, &previous_)) {}
  ~CurrentDevice() {
    // It was current before, so that it can be again; there is nobody to tell otherwise.
    if (previous_ >= 0) (void)cudaSetDevice(previous_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  const Status& status() const { return status_; }

 private:
  static Status Choose(int device, int* previous) {
    if (Status status = FromCuda(cudaGetDevice(previous), "asking for the current device"); !status.ok()) {
      return status;
    }
    return FromCuda(cudaSetDevice(device), "choosing device " + std::to_string(device));
  }

  int previous_ = -1;
  const Status status_;
};

cudaStream_t AsStream(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t AsEvent(void* event) { return static_cast<cudaEvent_t>(event); }

Status CheckDevice(int device) {
  int num_devices = 0;
  Status status = FromCuda(cudaGetDeviceCount(&num_devices), "looking for CUDA devices");
  if (!status.ok()) return status;
  if (device >= 0 && device < num_devices) return Status::Ok();
  return Status(StatusCode::kInvalidArgument,
                "no CUDA device " + std::to_string(device) + ", there are " + std::to_string(num_devices));
}

Status Enqueue(cudaStream_t stream, const std::vector<DevicePiece>& pieces, const DeviceEvent* producer) {
  if (producer != nullptr) {
    const cudaError_t error = cudaStreamWaitEvent(stream, AsEvent(producer->handle()), 0);
    if (Status status = FromCuda(error, "waiting for the producer's stream"); !status.ok()) return status;
  }
  for (const DevicePiece& piece : pieces) {
    const cudaError_t error =
        cudaMemcpyAsync(piece.dst, piece.src, piece.size_bytes, cudaMemcpyDeviceToHost, stream);
    if (Status status =
            FromCuda(error, "copying " + std::to_string(piece.size_bytes) + " bytes from the device");
        !status.ok()) {
      return status;
    }
  }
  return Status::Ok();
}

}  // namespace

int NumDevices() {
  int num_devices = 0;
  return FromCuda(cudaGetDeviceCount(&num_devices), "").ok() ? num_devices : 0;
}

Status PinHostMemory(void* data, size_t size_bytes) {
  const cudaError_t error = cudaHostRegister(data, size_bytes, cudaHostRegisterPortable);
  return FromCuda(error, "pinning " + std::to_string(size_bytes) + " bytes");
}

Status UnpinHostMemory(void* data) { return FromCuda(cudaHostUnregister(data), "unpinning host memory"); }

Result<std::shared_ptr<DeviceEvent>> DeviceEvent::Record(int device, void* stream) {
  if (Status status = CheckDevice(device); !status.ok()) return status;
  const CurrentDevice current(device);
  if (!current.status().ok()) return current.status();
  cudaEvent_t event;
  // Without timing an event costs less; with blocking sync a waiter sleeps and leaves its core to the
  // training.
  const cudaError_t created =
      cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync);
  if (Status status = FromCuda(created, "creating an event"); !status.ok()) return status;
  std::shared_ptr<DeviceEvent> owner(new DeviceEvent(event));
  const cudaError_t recorded = cudaEventRecord(event, AsStream(stream));
  if (Status status = FromCuda(recorded, "recording an event"); !status.ok()) return status;
  return owner;
}

DeviceEvent::~DeviceEvent() {
  (void)cudaEventDestroy(AsEvent(event_));  // fails only with a context that is gone, and the event with it
}

Result<bool> DeviceEvent::Poll() const {
  const cudaError_t error = cudaEventQuery(AsEvent(event_));
  if (error == cudaSuccess) return true;
  if (error != cudaErrorNotReady) return FromCuda(error, "polling a device event");
  (void)cudaGetLastError();  // "not ready" counts as an error, too
  return false;
}

Status DeviceEvent::Wait() const {
  return FromCuda(cudaEventSynchronize(AsEvent(event_)), "waiting for a device event");
}

Result<std::unique_ptr<DeviceCopier>> DeviceCopier::Create(int device) {
  if (Status status = CheckDevice(device); !status.ok()) return status;
  const CurrentDevice current(device);
  if (!current.status().ok()) return current.status();
  int least_urgent = 0;
  const cudaError_t asked = cudaDeviceGetStreamPriorityRange(&least_urgent, nullptr);
  if (Status status = FromCuda(asked, "asking for stream priorities"); !status.ok()) return status;
  cudaStream_t stream;
  // Non-blocking: never ordered against the default stream, which training may be using.
  const cudaError_t created = cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, least_urgent);
  if (Status status = FromCuda(created, "creating a stream"); !status.ok()) return status;
  return std::unique_ptr<DeviceCopier>(new DeviceCopier(device, stream));
}

DeviceCopier::~DeviceCopier() {
  // What the copies failed with was told by their tickets.
  (void)cudaStreamSynchronize(AsStream(stream_));
  (void)cudaStreamDestroy(AsStream(stream_));
}

Result<DeviceCopier::Ticket> DeviceCopier::Submit(const std::vector<DevicePiece>& pieces,
                                                  const DeviceEvent* producer) {
  const CurrentDevice current(device_);
  if (!current.status().ok()) return current.status();
  Status enqueued = Enqueue(AsStream(stream_), pieces, producer);
  Result<Ticket> ticket = enqueued.ok() ? DeviceEvent::Record(device_, stream_) : Result<Ticket>(enqueued);
  // Some pieces may be under way, and the caller reuses their blocks as soon as it hears of the failure.
  if (!ticket.ok()) (void)cudaStreamSynchronize(AsStream(stream_));
  return ticket;
}

}  // namespace elastates
