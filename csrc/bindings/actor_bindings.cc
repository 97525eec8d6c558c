// The actor core's own measurements, for benchmarks/actors.py.
#include "actor/actor_bench.h"
#include "bindings/bindings.h"

namespace elastates {

void BindActorBench(py::module_& m) {
  m.def("actor_same_thread_hop_ns", &SameThreadHopNs, py::arg("messages"),
        py::call_guard<py::gil_scoped_release>(), "Nanoseconds per message between two actors of one lane.");
  m.def("actor_cross_thread_messages_per_s", &CrossThreadMessagesPerS, py::arg("messages"),
        py::call_guard<py::gil_scoped_release>(), "Messages per second between actors of two lanes.");
}

}  // namespace elastates
