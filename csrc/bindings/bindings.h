// What the parts of the extension module share: the Bind* functions, and Status turned into Python
// exceptions.
#ifndef ELASTATES_BINDINGS_BINDINGS_H_
#define ELASTATES_BINDINGS_BINDINGS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "base/status.h"

namespace elastates {

namespace py = pybind11;

// A one-dimensional array, converted to T and made contiguous if it is not.
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Raises _elastates.StatusError(code, message, errno), or TimeoutError for kDeadlineExceeded. Needs the GIL.
void RaiseIfFailed(const Status& status);

template <typename T>
T ValueOrRaise(Result<T> result) {
  RaiseIfFailed(result.status());
  return std::move(result).value();
}

void BindStatusError(py::module_& m);
void BindTensorRefs(py::module_& m);
void BindEngine(py::module_& m);
void BindStorage(py::module_& m);
void BindFiles(py::module_& m);
void BindActorBench(py::module_& m);
void BindTrace(py::module_& m);
void BindJson(py::module_& m);
void BindComm(py::module_& m);
void BindProcessGroup(py::module_& m);
void BindViews(py::module_& m);

}  // namespace elastates

#endif  // ELASTATES_BINDINGS_BINDINGS_H_
