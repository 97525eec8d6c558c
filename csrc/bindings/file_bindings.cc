// File operations for Python, and what tests do to them: faults, recordings, deaths. All release the GIL.
#include <string>
#include <string_view>

#include "bindings/bindings.h"
#include "storage/fault.h"
#include "storage/recording.h"
#include "storage/small_file.h"
#include "storage/syscalls.h"

namespace elastates {
namespace {

using Path = const std::string&;

template <typename Call>
void WithoutGil(const Call& call) {
  Status status;
  {
    py::gil_scoped_release release;
    status = call();
  }
  RaiseIfFailed(status);
}

Status AsStatus(int result, const std::string& what) {
  return result < 0 ? Status::FromErrno(-result, what) : Status::Ok();
}

void WriteSyncedForPython(Path path, std::string_view content) {
  WithoutGil([&] { return WriteSynced(path, content); });
}

int OpenOrCreateForPython(Path path) { return ValueOrRaise(OpenOrCreate(path)).Release(); }

void OverwriteForPython(int fd, Path path, std::string_view content) {
  WithoutGil([&] { return Overwrite(fd, path, content); });
}

void WriteAtForPython(int fd, Path path, const py::buffer& content, uint64_t offset) {
  const py::buffer_info info = content.request();
  const std::string_view bytes(static_cast<const char*>(info.ptr),
                               static_cast<size_t>(info.size * info.itemsize));
  WithoutGil([&] { return WriteAt(fd, path, bytes, offset); });
}

void BindOperations(py::module_& m) {
  m.def("write_synced", &WriteSyncedForPython, py::arg("path"), py::arg("content"));
  m.def("open_or_create", &OpenOrCreateForPython, py::arg("path"), "A descriptor, which the caller closes.");
  m.def("overwrite", &OverwriteForPython, py::arg("fd"), py::arg("path"), py::arg("content"));
  m.def("write_at", &WriteAtForPython, py::arg("fd"), py::arg("path"), py::arg("content"), py::arg("offset"),
        "content: a contiguous buffer.");
  m.def(
      "set_length",
      [](int fd, Path path, uint64_t size_bytes) {
        WithoutGil([&] { return SetLength(fd, path, size_bytes); });
      },
      py::arg("fd"), py::arg("path"), py::arg("size_bytes"));
  m.def(
      "sync_file", [](int fd, Path path) { WithoutGil([&] { return SyncFile(fd, path); }); }, py::arg("fd"),
      py::arg("path"));
  m.def(
      "sync_directory", [](Path path) { WithoutGil([&] { return SyncDirectory(path); }); }, py::arg("path"));
  m.def(
      "rename",
      [](Path from, Path to) {
        WithoutGil([&] { return AsStatus(sys::Rename(from, to), "renaming " + from + " to " + to); });
      },
      py::arg("source"), py::arg("destination"));
  m.def(
      "rename_no_replace", [](Path from, Path to) { WithoutGil([&] { return RenameNoReplace(from, to); }); },
      py::arg("source"), py::arg("destination"));
  m.def(
      "link",
      [](Path from, Path to) {
        WithoutGil([&] { return AsStatus(sys::Link(from, to), "linking " + from + " to " + to); });
      },
      py::arg("source"), py::arg("destination"));
  m.def(
      "unlink",
      [](Path path) { WithoutGil([&] { return AsStatus(sys::Unlink(path), "removing " + path); }); },
      py::arg("path"));
  m.def(
      "make_directory",
      [](Path path) { WithoutGil([&] { return AsStatus(sys::Mkdir(path, 0777), "making " + path); }); },
      py::arg("path"));
  m.def(
      "remove_directory",
      [](Path path) { WithoutGil([&] { return AsStatus(sys::Rmdir(path), "removing " + path); }); },
      py::arg("path"));
}

py::dict OperationForPython(const FileOperation& operation) {
  py::dict fields;
  fields["op"] = operation.op;
  fields["path"] = operation.path;
  fields["destination"] = operation.destination;
  fields["offset"] = operation.offset;
  fields["size_bytes"] = operation.size_bytes;
  fields["data"] = py::bytes(operation.data);
  fields["result"] = operation.result;
  fields["began_ns"] = operation.began_ns;
  fields["ended_ns"] = operation.ended_ns;
  return fields;
}

py::list TakeRecordingForPython() {
  py::list operations;
  for (const FileOperation& operation : TakeRecording()) operations.append(OperationForPython(operation));
  return operations;
}

void BindFaults(py::module_& m) {
  m.def(
      "set_fault",
      [](std::string op, int nth, int times, int error, size_t short_by, bool hold) {
        Fault fault;
        fault.op = std::move(op);
        fault.nth = nth;
        fault.times = times;
        fault.error = error;
        fault.short_by = short_by;
        fault.hold = hold;
        SetFault(std::move(fault));
      },
      py::arg("op"), py::arg("nth") = 1, py::arg("times") = 1, py::arg("error") = 0, py::arg("short_by") = 0,
      py::arg("hold") = false,
      "For tests: make native file operations fail, do less than asked, or wait until clear_fault().");
  m.def("clear_fault", &ClearFault);
  m.def("num_faults_struck", &NumFaultsStruck);
}

void BindRecording(py::module_& m) {
  m.def("start_recording", &StartRecording, "For tests: keep a log of every operation that changes files.");
  m.def("take_recording", &TakeRecordingForPython, "The log so far, a list of dicts; recording goes on.");
  m.def("stop_recording", &StopRecording);
  m.def("record_mark", &RecordMark, py::arg("text"), "Puts a note into the log.");
  m.def(
      "die_before", &DieBefore, py::arg("nth"),
      "For tests: SIGKILL this process when the nth operation from now, counted from 1, is about to begin.");
}

}  // namespace

void BindFiles(py::module_& m) {
  BindOperations(m);
  BindFaults(m);
  BindRecording(m);
}

}  // namespace elastates
