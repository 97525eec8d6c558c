// What copy/device_copy.h is in a build without nvcc: every attempt fails with the reason.
#ifndef ELASTATES_WITH_CUDA

#include "copy/device_copy.h"

namespace elastates {
namespace {

Status NoCuda() {
  return Status(StatusCode::kInvalidArgument, "no CUDA: this build of elastates was made without nvcc");
}

}  // namespace

int NumDevices() { return 0; }

Status PinHostMemory(void*, size_t) { return NoCuda(); }
Status UnpinHostMemory(void*) { return NoCuda(); }

Result<std::shared_ptr<DeviceEvent>> DeviceEvent::Record(int, void*) { return NoCuda(); }
DeviceEvent::~DeviceEvent() = default;
Result<bool> DeviceEvent::Poll() const { return NoCuda(); }
Status DeviceEvent::Wait() const { return NoCuda(); }

Result<std::unique_ptr<DeviceCopier>> DeviceCopier::Create(int) { return NoCuda(); }
DeviceCopier::~DeviceCopier() = default;
Result<DeviceCopier::Ticket> DeviceCopier::Submit(const std::vector<DevicePiece>&, const DeviceEvent*) {
  return NoCuda();
}

}  // namespace elastates

#endif  // ELASTATES_WITH_CUDA
