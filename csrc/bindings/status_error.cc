#include "bindings/bindings.h"

namespace elastates {
namespace {

PyObject* status_error = nullptr;  // the exception type; lives as long as the interpreter

const char* CodeName(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return "ok";
    case StatusCode::kInvalidArgument:
      return "invalid_argument";
    case StatusCode::kIoError:
      return "io_error";
    case StatusCode::kNoSpace:
      return "no_space";
    case StatusCode::kQuotaExceeded:
      return "quota_exceeded";
    case StatusCode::kDataLoss:
      return "data_loss";
    case StatusCode::kResourceExhausted:
      return "resource_exhausted";
    case StatusCode::kDeadlineExceeded:
      return "deadline_exceeded";
    case StatusCode::kMutated:
      return "mutated";
    case StatusCode::kCancelled:
      return "cancelled";
    case StatusCode::kPeerLost:
      return "peer_lost";
    case StatusCode::kRevoked:
      return "revoked";
    case StatusCode::kInternal:
      return "internal";
  }
  return "internal";
}

}  // namespace

void RaiseIfFailed(const Status& status) {
  if (status.ok()) return;
  if (status.code() == StatusCode::kDeadlineExceeded) {
    PyErr_SetString(PyExc_TimeoutError, status.message().c_str());
  } else {
    py::tuple args = py::make_tuple(CodeName(status.code()), status.message(), status.sys_errno());
    PyErr_SetObject(status_error, args.ptr());
  }
  throw py::error_already_set();
}

void BindStatusError(py::module_& m) {
  status_error = PyErr_NewExceptionWithDoc("_elastates.StatusError",
                                           "A native failure; args are (code, message, errno or 0).",
                                           PyExc_RuntimeError, nullptr);
  m.attr("StatusError") = py::reinterpret_borrow<py::object>(status_error);
}

}  // namespace elastates
