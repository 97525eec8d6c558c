// The links of this process and its groups, for Python. All that waits releases the GIL.
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "comm/endpoint.h"

namespace elastates {
namespace {

using Strings = std::vector<std::string>;

std::shared_ptr<Endpoint> StartForPython(std::string job, std::string secret, Strings bind,
                                         double failure_timeout_s, std::string host) {
  LinkPoolOptions options;
  options.job = std::move(job);
  options.secret = std::move(secret);
  options.bind = std::move(bind);
  options.failure_timeout_s = failure_timeout_s;
  options.host = std::move(host);
  return ValueOrRaise(Endpoint::Start(std::move(options)));
}

View ViewOf(uint32_t epoch, const Strings& handles) {
  View view;
  view.epoch = epoch;
  view.members = ValueOrRaise(DecodeMembers(handles));
  return view;
}

Strings HandlesOf(const View& view) {
  Strings handles;
  for (const Member& member : view.members) handles.push_back(Encode(member));
  return handles;
}

std::shared_ptr<QueuedGroup> MakeGroupForPython(Endpoint& endpoint, const std::string& name, uint32_t epoch,
                                                const Strings& handles, double timeout_s) {
  View view = ViewOf(epoch, handles);
  Result<std::shared_ptr<QueuedGroup>> group = [&] {
    py::gil_scoped_release release;
    return endpoint.MakeGroup(name, std::move(view), timeout_s);
  }();
  return ValueOrRaise(std::move(group));
}

void InstallForPython(Endpoint& endpoint, QueuedGroup& group, uint32_t epoch, const Strings& handles,
                      double timeout_s) {
  View view = ViewOf(epoch, handles);
  Status status;
  {
    py::gil_scoped_release release;
    status = endpoint.Install(group, std::move(view), timeout_s);
  }
  RaiseIfFailed(status);
}

py::list LossesForPython(const Endpoint& endpoint) {
  py::list losses;
  for (const auto& [id, lost] : endpoint.hub().losses()) {
    losses.append(py::make_tuple(id, lost.loss == Loss::kDead, lost.why));
  }
  return losses;
}

void BindEndpoint(py::module_& m) {
  py::class_<Endpoint, std::shared_ptr<Endpoint>>(m, "Endpoint", "This process in its job: its links.")
      .def_static("start", &StartForPython, py::arg("job"), py::arg("secret"), py::arg("bind"),
                  py::arg("failure_timeout_s"), py::arg("host") = "")
      .def_property_readonly("handle", [](const Endpoint& endpoint) { return Encode(endpoint.self()); })
      .def_property_readonly("id", [](const Endpoint& endpoint) { return endpoint.self().id; })
      .def("make_group", &MakeGroupForPython, py::arg("name"), py::arg("epoch"), py::arg("handles"),
           py::arg("timeout_s"), "A group of the members that the handles stand for, in rank order.")
      .def("install", &InstallForPython, py::arg("group"), py::arg("epoch"), py::arg("handles"),
           py::arg("timeout_s"), "Bring a group to a newer view; new members are connected to.")
      .def(
          "connect",
          [](Endpoint& endpoint, const Strings& handles, double timeout_s) {
            const std::vector<Member> members = ValueOrRaise(DecodeMembers(handles));
            Status status;
            {
              py::gil_scoped_release release;
              status = endpoint.links().Connect(members, timeout_s);
            }
            RaiseIfFailed(status);
          },
          py::arg("handles"), py::arg("timeout_s"), "Make links to members that are not in a group yet.")
      .def(
          "report_dead",
          [](Endpoint& endpoint, MemberId member, const std::string& why) {
            endpoint.links().ReportDead(member, why, "");
          },
          py::arg("member"), py::arg("why"), "Somebody has seen the process of a member end.")
      .def("losses", &LossesForPython, "[(member id, proven dead, why)]: every member lost so far.")
      .def(
          "close_group",
          [](Endpoint& endpoint, const std::shared_ptr<QueuedGroup>& group) {
            endpoint.hub().CloseGroup(group);
          },
          py::arg("group"), py::call_guard<py::gil_scoped_release>())
      .def("close", &Endpoint::Close, py::call_guard<py::gil_scoped_release>(),
           "Take leave of the others and end all groups and links.");
}

void BindGroup(py::module_& m) {
  py::class_<QueuedGroup, std::shared_ptr<QueuedGroup>>(m, "CommGroup", "A member list and an epoch.")
      .def_property_readonly("name", &QueuedGroup::name)
      .def_property_readonly("id", &QueuedGroup::id)
      .def_property_readonly("rank", &QueuedGroup::rank)
      .def_property_readonly("size", [](const QueuedGroup& group) { return group.view()->members.size(); })
      .def_property_readonly("epoch", [](const QueuedGroup& group) { return group.view()->epoch; })
      .def_property_readonly("sequence", &QueuedGroup::sequence, "Operations queued in this epoch.")
      .def_property_readonly("why_revoked", &QueuedGroup::why_revoked, "Empty while it is not revoked.")
      .def("handles", [](const QueuedGroup& group) { return HandlesOf(*group.view()); })
      .def("revoke", &QueuedGroup::Revoke, py::arg("why"), py::call_guard<py::gil_scoped_release>(),
           "Fail every operation, on all members, until a newer view is installed.");
}

}  // namespace

void BindComm(py::module_& m) {
  BindEndpoint(m);
  BindGroup(m);
}

}  // namespace elastates
