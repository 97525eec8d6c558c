// Engine and Snapshot for Python. The GIL is released around every wait.
#include "bindings/bindings.h"
#include "bindings/tensor_refs.h"
#include "engine/engine.h"

namespace elastates {
namespace {

SnapshotPlan MakePlan(std::string path, std::string header, std::shared_ptr<TensorRefs> refs,
                      const Array<int64_t>& index, const Array<uint64_t>& source_begin,
                      const Array<uint64_t>& file_begin, const Array<uint64_t>& sizes,
                      const Array<uint64_t>& extent_ends, uint64_t file_size, uint32_t num_groups) {
  SnapshotPlan plan;
  plan.path = std::move(path);
  plan.header = std::move(header);
  plan.segments.reserve(index.size());
  for (py::ssize_t i = 0; i < index.size(); ++i) {
    const size_t tensor = index.at(i);
    if (tensor >= refs->size() || source_begin.at(i) + sizes.at(i) > refs->nbytes(tensor)) {
      throw py::value_error("segment " + std::to_string(i) + " leaves its tensor");
    }
    plan.segments.push_back({refs->data(tensor) + source_begin.at(i), sizes.at(i), file_begin.at(i),
                             refs->group(tensor), refs->device(tensor)});
  }
  plan.extent_ends.assign(extent_ends.data(), extent_ends.data() + extent_ends.size());
  plan.file_size = file_size;
  plan.num_groups = num_groups;
  plan.check_unchanged = [refs](uint32_t group) { return refs->CheckUnchanged(group); };
  plan.producer_events = refs->producer_events();
  plan.owner = std::move(refs);
  return plan;
}

py::dict StatsDict(const EngineStats& stats) {
  py::dict out;
  out["num_submitted"] = stats.num_submitted;
  out["num_written"] = stats.num_written;
  out["num_failed"] = stats.num_failed;
  out["bytes_copied"] = stats.bytes_copied;
  out["bytes_written"] = stats.bytes_written;
  out["bytes_stored"] = stats.bytes_stored;
  out["copying_s"] = stats.copying_s;
  out["starved_s"] = stats.starved_s;
  out["arena_bytes"] = stats.arena_bytes;
  out["free_bytes"] = stats.free_bytes;
  return out;
}

template <typename Wait>
void WaitOrRaise(Wait wait) {
  Status status;
  {
    py::gil_scoped_release release;
    status = wait();
  }
  RaiseIfFailed(status);
}

void BindSnapshot(py::module_& m) {
  py::class_<Snapshot, std::shared_ptr<Snapshot>>(m, "Snapshot", "One data file on its way to storage.")
      .def(
          "wait_group_copied",
          [](Snapshot& s, uint32_t group, double timeout_s) {
            WaitOrRaise([&] { return s.WaitGroupCopied(group, timeout_s); });
          },
          py::arg("group"), py::arg("timeout_s") = -1.0)
      .def(
          "wait_copied",
          [](Snapshot& s, double timeout_s) { WaitOrRaise([&] { return s.WaitCopied(timeout_s); }); },
          py::arg("timeout_s") = -1.0, "Wait as somebody who wants to write to the sources.")
      .def(
          "watch_copied", [](Snapshot& s) { WaitOrRaise([&] { return s.WatchCopied(-1.0); }); },
          "Wait without making the engine hurry.")
      .def("hurry", &Snapshot::Hurry, py::call_guard<py::gil_scoped_release>())
      .def(
          "wait_written",
          [](Snapshot& s, double timeout_s) { WaitOrRaise([&] { return s.WaitWritten(timeout_s); }); },
          py::arg("timeout_s") = -1.0, "Wait until the file is complete, fsynced and closed.")
      .def(
          "release_owner", [](Snapshot& s) { s.TakeOwner(); }, "Let go of the sources, once all are copied.")
      .def(
          "extent_crc32c",
          [](const Snapshot& s) { return py::array_t<uint32_t>(s.crcs().size(), s.crcs().data()); },
          "[extents] uint32; only after wait_written() returned.")
      .def_property_readonly("id", &Snapshot::id, "Its number among this process's snapshots, from 1.")
      .def("uncopied_bytes", &Snapshot::uncopied_bytes)
      .def(
          "extent_changed",
          [](const Snapshot& s) {
            return py::array_t<uint8_t>(s.extent_changed().size(), s.extent_changed().data());
          },
          "[extents] uint8: 0 where a hole stands for the base's bytes; empty without a base. Only after "
          "wait_written().")
      .def(
          "extent_digests",
          [](const Snapshot& s) { return std::const_pointer_cast<ExtentDigests>(s.digests()); },
          "For the base of a later plan; None without a key. Only after wait_written() returned.")
      .def("times", [](const Snapshot& s) {
        const SnapshotTimes times = s.times();
        return py::make_tuple(times.submitted_s, times.copied_s, times.written_s);
      });
}

void BindDigests(py::module_& m) {
  py::class_<ContentKey, std::shared_ptr<ContentKey>>(m, "ContentKey", "The secret of a chain of deltas.")
      .def(py::init([](const py::bytes& random) {
             const std::string bytes(random);
             if (bytes.size() != ContentKey::kSizeBytes) {
               throw py::value_error(std::to_string(ContentKey::kSizeBytes) + " random bytes expected");
             }
             return std::make_shared<ContentKey>(bytes.data());
           }),
           py::arg("random"))
      .def_property_readonly_static("SIZE_BYTES", [](const py::object&) { return ContentKey::kSizeBytes; });
  py::class_<ExtentDigests, std::shared_ptr<ExtentDigests>>(m, "ExtentDigests",
                                                            "What the extents of a data file contained.")
      .def("__len__", [](const ExtentDigests& digests) { return digests.contents.size(); });
}

}  // namespace

void BindEngine(py::module_& m) {
  BindDigests(m);
  BindSnapshot(m);
  py::class_<Engine>(m, "Engine", "The chain of actors capture -> copy -> write -> commit, on one arena.")
      .def(py::init([](size_t arena_bytes, size_t block_bytes, int copy_threads, size_t copy_ahead_bytes,
                       int copy_nice, const std::string& write_backend, int write_depth, bool pinned,
                       bool allow_direct) {
             EngineOptions options;
             options.arena_bytes = arena_bytes;
             options.block_bytes = block_bytes;
             options.num_copy_threads = copy_threads;
             options.copy_ahead_bytes = copy_ahead_bytes;
             options.copy_nice = copy_nice;
             options.write_depth = write_depth;
             options.pinned = pinned;
             options.allow_direct = allow_direct;
             if (write_backend == "threads") options.write_backend = WriteBackend::kThreads;
             if (write_backend == "io_uring") options.write_backend = WriteBackend::kUring;
             return ValueOrRaise(Engine::Create(options));
           }),
           py::kw_only(), py::arg("arena_bytes"), py::arg("block_bytes"), py::arg("copy_threads"),
           py::arg("copy_ahead_bytes"), py::arg("copy_nice"), py::arg("write_backend"),
           py::arg("write_depth"), py::arg("pinned"), py::arg("allow_direct"))
      .def(
          "submit",
          [](Engine& engine, std::string path, const py::bytes& header, std::shared_ptr<TensorRefs> refs,
             const Array<int64_t>& index, const Array<uint64_t>& source_begin,
             const Array<uint64_t>& file_begin, const Array<uint64_t>& sizes,
             const Array<uint64_t>& extent_ends, uint64_t file_size, uint32_t num_groups,
             std::shared_ptr<ContentKey> content_key, std::shared_ptr<ExtentDigests> base) {
            SnapshotPlan plan = MakePlan(std::move(path), std::string(header), std::move(refs), index,
                                         source_begin, file_begin, sizes, extent_ends, file_size, num_groups);
            plan.content_key = base != nullptr ? base->key : std::move(content_key);
            plan.base = std::move(base);
            py::gil_scoped_release release;
            return engine.Submit(std::move(plan));
          },
          py::kw_only(), py::arg("path"), py::arg("header"), py::arg("refs"), py::arg("index"),
          py::arg("source_begin"), py::arg("file_begin"), py::arg("sizes"), py::arg("extent_ends"),
          py::arg("file_size"), py::arg("num_groups"), py::arg("content_key") = nullptr,
          py::arg("base") = nullptr,
          "content_key: digest the extents with it, for the base of a later plan. base: digests of a "
          "snapshot "
          "of the same\nlayout; extents that contain the same stay holes of the file.")
      .def("has_credit_for", &Engine::HasCreditFor, py::arg("size_bytes"))
      .def("stats", [](Engine& engine) { return StatsDict(engine.stats()); })
      .def("describe", &Engine::Describe, py::call_guard<py::gil_scoped_release>(),
           "Which actor waits for which register.")
      .def("reap", &Engine::Reap, py::call_guard<py::gil_scoped_release>())
      .def("close", &Engine::Close, py::call_guard<py::gil_scoped_release>());
}

}  // namespace elastates
