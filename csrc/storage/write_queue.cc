#include "storage/write_queue.h"

#include <utility>

namespace elastates {

std::unique_ptr<WriteQueue> MakeWriteQueue(int in_flight) {
  Result<std::unique_ptr<WriteQueue>> uring = MakeUringWriteQueue(in_flight);
  if (uring.ok()) return std::move(uring).value();
  return MakeThreadWriteQueue(in_flight);
}

}  // namespace elastates
