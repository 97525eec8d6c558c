// The extension module _elastates: what Python sees of csrc/.
#include <torch/version.h>

#include "bindings/bindings.h"

namespace {

constexpr bool kHasCuda =
#ifdef ELASTATES_WITH_CUDA
    true;
#else
    false;
#endif

constexpr bool kHasUring =
#ifdef ELASTATES_WITH_URING
    true;
#else
    false;
#endif

// What this build was made with; torch_version is that of the headers, which the running torch must match.
pybind11::dict BuildInfo() {
  pybind11::dict info;
  info["has_cuda"] = kHasCuda;
  info["has_uring"] = kHasUring;
  info["torch_version"] = TORCH_VERSION;
  return info;
}

}  // namespace

PYBIND11_MODULE(_elastates, m) {
  m.doc() = "Native core of elastates; used through the Python packages, not directly.";
  m.def("build_info", &BuildInfo, "What this build was made with: has_cuda, has_uring, torch_version.");
  elastates::BindStatusError(m);
  elastates::BindTensorRefs(m);
  elastates::BindEngine(m);
  elastates::BindStorage(m);
  elastates::BindFiles(m);
  elastates::BindActorBench(m);
  elastates::BindTrace(m);
  elastates::BindJson(m);
  elastates::BindComm(m);
  elastates::BindProcessGroup(m);
  elastates::BindViews(m);
}
