// The native trace for Python: recording on and off, and what was recorded.
#include "base/trace.h"
#include "bindings/bindings.h"

namespace elastates {
namespace {

py::list RecordsOf(const trace::ThreadRecords& thread) {
  py::list records;
  for (const trace::Record& record : thread.records) {
    records.append(py::make_tuple(record.what, record.begin_ns, record.end_ns, record.subject.snapshot,
                                  record.subject.chunk, record.subject.size_bytes));
  }
  return records;
}

py::list DrainForPython() {
  std::vector<trace::ThreadRecords> drained;
  {
    py::gil_scoped_release release;
    drained = trace::Drain();
  }
  py::list threads;
  for (const trace::ThreadRecords& thread : drained) {
    threads.append(py::make_tuple(thread.tid, thread.thread_name, RecordsOf(thread), thread.num_dropped));
  }
  return threads;
}

}  // namespace

void BindTrace(py::module_& m) {
  m.def("trace_start", &trace::Start, py::call_guard<py::gil_scoped_release>(),
        "Record what native threads do; False if somebody does already.");
  m.def("trace_stop", &trace::Stop);
  m.def("trace_drain", &DrainForPython,
        "[(tid, thread name, [(what, begin_ns, end_ns, snapshot id, chunk, bytes)], records dropped)];\n"
        "times as time.monotonic_ns(); a counter's sample has its value in place of bytes.");
}

}  // namespace elastates
