// Device copies without a device: every door says why it is closed. The copies themselves are tested where
// there is a GPU, through the extension.
#include <string>

#include "check.h"
#include "copy/device_copy.h"

namespace elastates {
namespace {

bool NamesCuda(const Status& status) {
  return !status.ok() && status.message().find("CUDA") != std::string::npos;
}

TEST(a_device_that_does_not_exist_is_refused) {
  const int none = NumDevices();
  CHECK(NamesCuda(DeviceCopier::Create(none).status()));
  CHECK(NamesCuda(DeviceCopier::Create(-1).status()));
  CHECK(NamesCuda(DeviceEvent::Record(none, nullptr).status()));
}

TEST(pinning_needs_cuda) {
  if (NumDevices() > 0) return;
  char byte = 0;
  CHECK(NamesCuda(PinHostMemory(&byte, 1)));
  CHECK(NamesCuda(UnpinHostMemory(&byte)));
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
