// DeviceCopier: asynchronous copies from one CUDA device into host memory, on a stream of their own.
//
// Several copies may be in flight; none synchronises the device or the producer's stream. Any thread may call
// any method. CUDA types appear as void* (cudaStream_t and cudaEvent_t are pointers), so that a build without
// CUDA compiles the same callers; there, and where no driver or device answers, every Create() says so in its
// Status.
#ifndef ELASTATES_COPY_DEVICE_COPY_H_
#define ELASTATES_COPY_DEVICE_COPY_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "base/status.h"

namespace elastates {

// What is worth asking before anything else: the devices CUDA can use now, 0 without CUDA, driver or device.
int NumDevices();

// Page-locks [data, data + size_bytes), so that copies to it are asynchronous and at full speed.
Status PinHostMemory(void* data, size_t size_bytes);
Status UnpinHostMemory(void* data);

// A point in a CUDA stream. Owns its event.
class DeviceEvent {
 public:
  // Marks what has been enqueued on `stream` (a cudaStream_t, nullptr for the default stream) of `device` so
  // far.
  static Result<std::shared_ptr<DeviceEvent>> Record(int device, void* stream);
  ~DeviceEvent();
  DeviceEvent(const DeviceEvent&) = delete;
  DeviceEvent& operator=(const DeviceEvent&) = delete;

  Result<bool> Poll()
      const;            // true once everything before the point is done; an error of that work surfaces here
  Status Wait() const;  // blocks without spinning

  void* handle() const { return event_; }  // cudaEvent_t

 private:
  explicit DeviceEvent(void* event) : event_(event) {}

  void* const event_;
};

// One contiguous piece, device memory to host memory.
struct DevicePiece {
  char* dst;
  const void* src;
  size_t size_bytes;
};

class DeviceCopier {
 public:
  using Ticket = std::shared_ptr<DeviceEvent>;

  static Result<std::unique_ptr<DeviceCopier>> Create(int device);
  ~DeviceCopier();  // waits for what is in flight
  DeviceCopier(const DeviceCopier&) = delete;
  DeviceCopier& operator=(const DeviceCopier&) = delete;

  // Enqueues the copies behind `producer` (nullptr: behind nothing) and returns at once. Sources and
  // destinations must stay as they are until the ticket is done. Destinations are pinned, or the copies are
  // not asynchronous.
  Result<Ticket> Submit(const std::vector<DevicePiece>& pieces, const DeviceEvent* producer);

  int device() const { return device_; }

 private:
  DeviceCopier(int device, void* stream) : device_(device), stream_(stream) {}

  const int device_;
  [[maybe_unused]] void* const stream_;  // cudaStream_t; unused where there is no CUDA
};

}  // namespace elastates

#endif  // ELASTATES_COPY_DEVICE_COPY_H_
