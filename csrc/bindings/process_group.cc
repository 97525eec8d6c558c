#include "bindings/process_group.h"

#include <torch/csrc/utils/pybind.h>

#include "bindings/bindings.h"

namespace elastates {
namespace {

constexpr auto kCustom = c10d::ProcessGroup::BackendType::CUSTOM;

// What ends a thread must not hold the lock that a callback on that thread may wait for.
template <typename Call>
void WithoutGil(const Call& call) {
  if (Py_IsInitialized() && PyGILState_Check()) {
    py::gil_scoped_release release;
    call();
  } else {
    call();
  }
}

}  // namespace

ElasticProcessGroup::ElasticProcessGroup(const c10::intrusive_ptr<c10d::Store>& store,
                                         std::shared_ptr<Endpoint> endpoint,
                                         std::shared_ptr<QueuedGroup> group,
                                         std::chrono::milliseconds timeout)
    : ProcessGroup(store, group->rank(), static_cast<int>(group->view()->members.size())),
      endpoint_(std::move(endpoint)),
      group_(std::move(group)) {
  setDefaultBackend(kCustom);
  SetBackends(c10::make_intrusive<ElasticBackend>(endpoint_, group_, timeout));
}

ElasticProcessGroup::~ElasticProcessGroup() {
  WithoutGil([this] { endpoint_->hub().CloseGroup(group_); });
}

void ElasticProcessGroup::SetBackends(const c10::intrusive_ptr<ElasticBackend>& backend) {
  backend_ = backend;
  deviceTypeToBackend_.clear();
  backendTypeToBackend_.clear();
  const c10::intrusive_ptr<c10d::Backend> base = backend;
  setBackend(c10::DeviceType::CPU, kCustom, base);
  setBackend(c10::DeviceType::CUDA, kCustom, base);
}

void ElasticProcessGroup::Refresh() {
  const std::string name = backend_->getGroupUid(), about = backend_->getGroupDesc();
  SetBackends(c10::make_intrusive<ElasticBackend>(endpoint_, group_, backend_->timeout()));
  backend_->setGroupUid(name);
  backend_->setGroupDesc(about);
}

void ElasticProcessGroup::shutdown() {
  WithoutGil([this] { backend_->shutdown(); });
}

void ElasticProcessGroup::abort() {
  WithoutGil([this] { backend_->abort(); });
}

void BindProcessGroup(py::module_& m) {
  if (!py::module_::import("torch.distributed").attr("is_available")().cast<bool>()) return;
  py::class_<ElasticProcessGroup, c10d::ProcessGroup, c10::intrusive_ptr<ElasticProcessGroup>>(
      m, "ElasticProcessGroup", "A process group whose rank and size are those of its newest view.")
      .def(py::init([](const c10::intrusive_ptr<c10d::Store>& store, std::shared_ptr<Endpoint> endpoint,
                       std::shared_ptr<QueuedGroup> group, double timeout_s) {
             return c10::make_intrusive<ElasticProcessGroup>(
                 store, std::move(endpoint), std::move(group),
                 std::chrono::milliseconds(static_cast<int64_t>(timeout_s * 1000)));
           }),
           py::arg("store"), py::arg("endpoint"), py::arg("group"), py::arg("timeout_s"))
      .def_property_readonly("comm_group", &ElasticProcessGroup::group)
      .def("refresh", &ElasticProcessGroup::Refresh, "To be called after its group's view has been edited.");
}

}  // namespace elastates
