#include "bindings/elastic_work.h"

#include <ATen/core/jit_type.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace elastates {
namespace {

c10::intrusive_ptr<c10::ivalue::Future> NewFuture() {
  return c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
}

std::exception_ptr AsException(const std::string& title, const Status& status) {
  return std::make_exception_ptr(
      c10::DistBackendError({__func__, __FILE__, __LINE__}, title + ": " + status.message()));
}

}  // namespace

ElementSpan Staging::AddBytes(const at::Tensor& tensor, Direction direction) {
  const bool is_host = tensor.device().is_cpu();
  if (is_host && tensor.is_contiguous()) {
    held_.push_back(tensor);
    return {static_cast<char*>(tensor.data_ptr()), tensor.nbytes()};
  }
  const at::TensorOptions options = tensor.options().device(at::kCPU).pinned_memory(!is_host);
  at::Tensor host = at::empty(tensor.sizes(), options);
  if (!is_host && !asked_for_) {
    asked_for_.emplace(tensor.device().type());
    asked_for_->record(c10::impl::VirtualGuardImpl(tensor.device().type()).getStream(tensor.device()));
  }
  staged_.push_back({tensor, host, direction});
  return {static_cast<char*>(host.data_ptr()), host.nbytes()};
}

ElementSpan Staging::AddElements(const at::Tensor& tensor, Direction direction) {
  return {AddBytes(tensor, direction).data, static_cast<size_t>(tensor.numel())};
}

void Staging::CopyIn() { Copy(kIn); }
void Staging::CopyOut() { Copy(kOut); }

void Staging::Copy(Direction direction) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  for (Staged& staged : staged_) {
    if ((staged.direction & direction) == 0) continue;
    std::optional<c10::StreamGuard> on_own_stream;
    if (!staged.tensor.device().is_cpu()) {
      const c10::impl::VirtualGuardImpl device(staged.tensor.device().type());
      const c10::Stream stream = device.getStreamFromGlobalPool(staged.tensor.device());
      asked_for_->block(stream);
      on_own_stream.emplace(stream);
    }
    if (direction == kIn) {
      staged.host.copy_(staged.tensor);
    } else {
      staged.tensor.copy_(staged.host);
    }
  }
}

ElasticWork::ElasticWork(int rank, c10d::OpType type, const char* title, std::vector<at::Tensor> inputs,
                         std::vector<at::Tensor> outputs, int num_parts)
    : Work(rank, type, title, inputs),
      title_(title),
      outputs_(std::move(outputs)),
      future_(NewFuture()),
      num_parts_(num_parts) {}

void ElasticWork::Complete(const Status& status) {
  if (!status.ok()) {
    std::lock_guard<std::mutex> lock(first_error_mutex_);
    if (first_error_.ok()) first_error_ = status;
  }
  if (num_parts_.fetch_sub(1) > 1) return;
  // The future first: who comes out of wait() may ask for its value.
  if (first_error_.ok()) {  // all parts are complete: nobody writes it any more
    future_->markCompleted(c10::IValue(outputs_));
    finish();
  } else {
    const std::exception_ptr error = AsException(title_, first_error_);
    future_->setError(error);
    finish(error);
  }
}

void ElasticWork::SetPatience(double patience_s, std::function<void()> on_late) {
  constexpr double kLongest_s = 1e8;  // three years; what is longer overflows the clock
  patience_ = std::chrono::milliseconds(static_cast<int64_t>(std::min(patience_s, kLongest_s) * 1e3));
  on_late_ = std::move(on_late);
}

bool ElasticWork::wait(std::chrono::milliseconds timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto is_done = [this] { return completed_; };
  if (timeout == kNoTimeout) {
    if (on_late_ && !cv_.wait_for(lock, patience_, is_done)) {
      lock.unlock();
      on_late_();
      lock.lock();
    }
    cv_.wait(lock, is_done);
  } else if (!cv_.wait_for(lock, timeout, is_done)) {
    C10_THROW_ERROR(DistBackendError,
                    title_ + " is not done after " + std::to_string(timeout.count()) + " ms; it goes on");
  }
  if (exception_) std::rethrow_exception(exception_);
  return true;
}

}  // namespace elastates
