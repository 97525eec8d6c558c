// Status and Result<T>: how every fallible call inside csrc/ reports.
//
// Values, freely copied between threads. The bindings alone turn them into Python exceptions.
#ifndef ELASTATES_BASE_STATUS_H_
#define ELASTATES_BASE_STATUS_H_

#include <cassert>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <variant>

namespace elastates {

enum class StatusCode {
  kOk = 0,
  kInvalidArgument,
  kIoError,            // EIO and every errno without a code of its own
  kNoSpace,            // ENOSPC
  kQuotaExceeded,      // EDQUOT
  kDataLoss,           // bytes read are not the bytes written
  kResourceExhausted,  // no arena block, no credit
  kDeadlineExceeded,
  kMutated,    // captured state was written to inside the window
  kCancelled,  // drained because an earlier act failed, or closed
  kPeerLost,   // another process is gone, or cannot be reached
  kRevoked,    // the group lost a member; its operations fail until its next view is installed
  kInternal,
};

// One pointer, null for Ok: acts of a few nanoseconds return one each.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message, int sys_errno = 0) {
    if (code == StatusCode::kOk) return;
    failure_ = std::make_shared<const Failure>(Failure{code, std::move(message), sys_errno});
  }

  static Status Ok() { return Status(); }

  // "<what>: <strerror>", with the code that `error` (an errno value) maps to.
  static Status FromErrno(int error, const std::string& what) {
    StatusCode code = StatusCode::kIoError;
    if (error == ENOSPC) code = StatusCode::kNoSpace;
    if (error == EDQUOT) code = StatusCode::kQuotaExceeded;
    return Status(code, what + ": " + std::strerror(error), error);
  }

  // The same failure with "<context>: " in front of its message.
  Status WithContext(const std::string& context) const {
    return Status(code(), context + ": " + message(), sys_errno());
  }

  bool ok() const { return failure_ == nullptr; }
  StatusCode code() const { return ok() ? StatusCode::kOk : failure_->code; }
  const std::string& message() const {
    static const std::string none;
    return ok() ? none : failure_->message;
  }
  int sys_errno() const {
    return ok() ? 0 : failure_->sys_errno;
  }  // 0 if the failure did not come from the system

 private:
  struct Failure {
    StatusCode code;
    std::string message;
    int sys_errno;
  };
  std::shared_ptr<const Failure> failure_;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : value_(std::move(status)) { assert(!this->status().ok()); }  // NOLINT

  bool ok() const { return std::holds_alternative<T>(value_); }
  Status status() const { return ok() ? Status::Ok() : std::get<Status>(value_); }
  // REQUIRES: ok().
  T& value() & { return std::get<T>(value_); }
  T&& value() && { return std::get<T>(std::move(value_)); }

 private:
  std::variant<T, Status> value_;
};

}  // namespace elastates

#endif  // ELASTATES_BASE_STATUS_H_
