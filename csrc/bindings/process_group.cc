#include "bindings/process_group.h"

#include <torch/csrc/utils/pybind.h>

#include <algorithm>

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
      name_(group->name()),
      backend_(c10::make_intrusive<ElasticBackend>(endpoint_, group, timeout)) {
  setDefaultBackend(kCustom);
  Adopt(std::move(group));
}

ElasticProcessGroup::~ElasticProcessGroup() {
  WithoutGil([this] { endpoint_->hub().CloseGroup(group()); });
}

c10::intrusive_ptr<ElasticBackend> ElasticProcessGroup::backend() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return backend_;
}

std::shared_ptr<QueuedGroup> ElasticProcessGroup::group() const { return backend()->group(); }

void ElasticProcessGroup::Adopt(std::shared_ptr<QueuedGroup> group) {
  const c10::intrusive_ptr<ElasticBackend> before = backend();
  const auto after = c10::make_intrusive<ElasticBackend>(endpoint_, std::move(group), before->timeout());
  after->setGroupUid(before->getGroupUid());
  after->setGroupDesc(before->getGroupDesc());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    backend_ = after;
  }
  deviceTypeToBackend_.clear();
  backendTypeToBackend_.clear();
  const c10::intrusive_ptr<c10d::Backend> base = after;
  setBackend(c10::DeviceType::CPU, kCustom, base);
  setBackend(c10::DeviceType::CUDA, kCustom, base);
}

void ElasticProcessGroup::shutdown() {
  WithoutGil([this] { backend()->shutdown(); });
}

void ElasticProcessGroup::abort() {
  WithoutGil([this] { backend()->abort(); });
}

c10::intrusive_ptr<c10d::ProcessGroup> ElasticProcessGroup::splitGroup(
    const std::vector<int>& ranks, const std::optional<std::chrono::milliseconds>& timeout,
    const std::optional<c10::intrusive_ptr<c10d::Backend::Options>>&, const std::optional<std::string>& name,
    const std::optional<std::string>& about, const std::optional<std::vector<c10::Device>>&) {
  const std::shared_ptr<const View> view = group()->view();
  const std::string group_name = name.value_or(getGroupName() + ":split:" + std::to_string(splitCounter_++));
  View part;
  part.epoch = 1;
  bool is_member = false;
  for (int rank : ranks) {
    TORCH_CHECK(rank >= 0 && rank < static_cast<int>(view->members.size()), "elastic: splitting off rank ",
                rank, " of a group of ", view->members.size());
    part.members.push_back(view->members[rank]);
    is_member |= rank == getRank();
  }
  if (!is_member) return nullptr;
  const std::string unique_name = name_ + "/" + group_name + "@" + std::to_string(view->epoch);
  const std::shared_ptr<QueuedGroup> made = MakeGroup(unique_name, std::move(part));
  auto split = c10::make_intrusive<ElasticProcessGroup>(store_, endpoint_, made,
                                                        timeout.value_or(backend()->timeout()));
  split->setGroupName(group_name);
  split->setGroupDesc(about.value_or("split of " + getGroupName()));
  return split;
}

std::shared_ptr<QueuedGroup> ElasticProcessGroup::MakeGroup(const std::string& name, View view) {
  const double timeout_s = std::chrono::duration<double>(backend()->timeout()).count();
  Result<std::shared_ptr<QueuedGroup>> group = Status(StatusCode::kInternal, "not made");
  WithoutGil([&] { group = endpoint_->MakeGroup(name, std::move(view), timeout_s); });
  TORCH_CHECK_WITH(DistBackendError, group.ok(), "elastic: ", group.status().message());
  return group.value();
}

#ifdef C10D_BACKEND_HAS_RECONFIGURE
void ElasticProcessGroup::Await(int rank, int size, const std::string& why) {
  awaited_rank_ = rank;
  awaited_size_ = size;
  awaits_ = true;
  group()->Revoke(why);
}

namespace {

// In the order of the ranks: as listed, or sorted, which all members do alike.
std::vector<std::string> InOrder(const c10d::ReconfigureOptions& options) {
  if (const auto* listed = std::get_if<std::vector<std::string>>(&options.handles)) return *listed;
  const auto& unordered = std::get<std::unordered_set<std::string>>(options.handles);
  std::vector<std::string> sorted(unordered.begin(), unordered.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

}  // namespace

// Done when it returns. The group of before is closed first, here alone: its other members decide for
// themselves.
WorkPtr ElasticProcessGroup::reconfigure(const c10d::ReconfigureOptions& options) {
  Result<std::vector<Member>> members = DecodeMembers(InOrder(options));
  TORCH_CHECK_VALUE(members.ok(), "elastic: reconfigure: ", members.status().message());
  const std::vector<Member>& listed = members.value();
  TORCH_CHECK_VALUE(std::find(listed.begin(), listed.end(), endpoint_->self()) != listed.end(),
                    "elastic: reconfigure: the handle of this process is not among those of the new members");
  TORCH_CHECK_VALUE(used_uuids_.insert(options.uuid).second, "elastic: reconfigure: uuid ", options.uuid,
                    " has been used before; take a new one each time");
  WithoutGil([this] { endpoint_->hub().CloseGroup(group()); });
  const std::chrono::milliseconds timeout = backend()->timeout();
  if (options.timeout) backend()->setTimeout(*options.timeout);
  // By what all call the group, new processes too, whatever number each has given it.
  const std::string common_name = name_.substr(0, name_.find('@'));
  Adopt(MakeGroup(common_name + "/" + std::to_string(options.uuid), {1, std::move(members).value()}));
  awaits_ = false;
  backend()->setTimeout(timeout);
  const auto work = c10::make_intrusive<ElasticWork>(getRank(), c10d::OpType::UNKNOWN, "elastic:reconfigure",
                                                     Tensors(), Tensors(), 1);
  work->Complete(Status::Ok());
  return work;
}
#endif

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
#ifdef C10D_BACKEND_HAS_RECONFIGURE
      .def("await_reconfigure", &ElasticProcessGroup::Await, py::arg("rank"), py::arg("size"), py::arg("why"),
           py::call_guard<py::gil_scoped_release>(), "Fail everything until the first reconfigure().")
#endif
      .def_property_readonly("comm_group", &ElasticProcessGroup::group)
      .def("refresh", &ElasticProcessGroup::Refresh, "To be called after its group's view has been edited.");
}

}  // namespace elastates
