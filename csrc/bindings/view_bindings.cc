// Agreeing on views, for Python. All that waits releases the GIL.
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "comm/view/view_keeper.h"

namespace elastates {
namespace {

using Strings = std::vector<std::string>;

std::unique_ptr<ViewKeeper> MakeKeeper(std::shared_ptr<Endpoint> endpoint, std::string group,
                                       double failure_timeout_s, bool has_witness, bool exits_when_out) {
  ViewKeeperOptions options;
  options.group = std::move(group);
  options.failure_timeout_s = failure_timeout_s;
  options.has_witness = has_witness;
  options.exits_when_out = exits_when_out;
  return std::make_unique<ViewKeeper>(std::move(endpoint), std::move(options));
}

void OpenForPython(ViewKeeper& keeper, uint32_t epoch, const Strings& handles) {
  View view{epoch, ValueOrRaise(DecodeMembers(handles))};
  RaiseIfFailed(keeper.Open(view));
}

// (epoch, handles, old rank of each or None, payload of each)
py::tuple ToPython(const AgreedView& agreed) {
  Strings handles;
  py::list old_ranks, payloads;
  for (const Member& member : agreed.view.members) handles.push_back(Encode(member));
  for (const Seat& seat : agreed.decision.seats) {
    old_ranks.append(seat.old_rank == Seat::kJoined ? py::object(py::none())
                                                    : py::object(py::int_(seat.old_rank)));
    payloads.append(py::bytes(seat.payload));
  }
  return py::make_tuple(agreed.view.epoch, handles, old_ranks, payloads);
}

template <typename Wait>
py::tuple WaitForView(const Wait& wait) {
  Result<AgreedView> agreed = [&] {
    py::gil_scoped_release release;
    return wait();
  }();
  return ToPython(ValueOrRaise(std::move(agreed)));
}

py::object NextRequestForPython(ViewKeeper& keeper) {
  std::optional<ViewRequest> request;
  {
    py::gil_scoped_release release;
    request = keeper.NextRequest();
  }
  if (!request) return py::none();
  if (request->kind == ViewRequest::Kind::kFence) return py::make_tuple("fence", request->member);
  return py::make_tuple("witness", request->epoch, py::bytes(request->expected), py::bytes(request->content));
}

const char* OutName(const ViewKeeper& keeper) {
  switch (keeper.out()) {
    case ViewKeeper::Out::kFenced:
      return "fenced";
    case ViewKeeper::Out::kNoQuorum:
      return "no_quorum";
    case ViewKeeper::Out::kIn:
      break;
  }
  return "";
}

}  // namespace

void BindViews(py::module_& m) {
  py::class_<ViewKeeper>(m, "ViewKeeper", "This process's part in agreeing on the views of a group.")
      .def(py::init(&MakeKeeper), py::arg("endpoint"), py::arg("group"), py::arg("failure_timeout_s"),
           py::arg("has_witness") = false, py::arg("exits_when_out") = true)
      .def("open", &OpenForPython, py::arg("epoch"), py::arg("handles"), "The group's first view.")
      .def(
          "agree",
          [](ViewKeeper& keeper, const std::string& payload, double timeout_s) {
            return WaitForView([&] { return keeper.Agree(payload, timeout_s); });
          },
          py::arg("payload"), py::arg("timeout_s"),
          "(epoch, handles, old rank of each or None, payload of each): the next view, to be installed.")
      .def(
          "await_welcome",
          [](ViewKeeper& keeper, double timeout_s) {
            return WaitForView([&] { return keeper.AwaitWelcome(timeout_s); });
          },
          py::arg("timeout_s"), "The same, of the view that takes this process in.")
      .def(
          "add_candidate",
          [](ViewKeeper& keeper, const std::string& handle, const std::string& payload) {
            keeper.AddCandidate(ValueOrRaise(DecodeMember(handle)), payload);
          },
          py::arg("handle"), py::arg("payload"),
          "Name somebody who wants to join, once there is a link to it.")
      .def("next_request", &NextRequestForPython,
           "('fence', member id) or ('witness', epoch, expected, wanted); waits; None when closed.")
      .def("answer_witness", &ViewKeeper::AnswerWitness, py::arg("epoch"), py::arg("is_swapped"),
           py::arg("actual"))
      .def_property_readonly("num_candidates", &ViewKeeper::num_candidates,
                             "How many want to join and have links.")
      .def_property_readonly("out", &OutName, "'fenced', 'no_quorum', or empty while this process is in.")
      .def("close", &ViewKeeper::Close);
}

}  // namespace elastates
