// Checksums and verified reads for Python.
#include "base/crc32c.h"
#include "bindings/bindings.h"
#include "storage/verified_read.h"

namespace elastates {
namespace {

std::vector<ReadExtent> MakeExtents(uint64_t first_begin, const Array<uint64_t>& ends,
                                    const Array<uint32_t>& crcs) {
  if (ends.size() != crcs.size()) throw py::value_error("one checksum per extent expected");
  std::vector<ReadExtent> extents;
  extents.reserve(ends.size());
  uint64_t begin = first_begin;
  for (py::ssize_t i = 0; i < ends.size(); ++i) {
    extents.push_back({begin, ends.at(i), crcs.at(i)});
    begin = ends.at(i);
  }
  return extents;
}

std::vector<Scatter> MakeScatters(const Array<uint64_t>& begins, const Array<uint64_t>& ends,
                                  const Array<uint64_t>& addresses) {
  if (begins.size() != ends.size() || begins.size() != addresses.size()) {
    throw py::value_error("begins, ends and addresses must have one length");
  }
  std::vector<Scatter> scatters;
  scatters.reserve(begins.size());
  for (py::ssize_t i = 0; i < begins.size(); ++i) {
    scatters.push_back({begins.at(i), ends.at(i), reinterpret_cast<char*>(addresses.at(i))});
  }
  return scatters;
}

py::tuple ReadVerifiedForPython(const std::string& path, uint64_t file_size, uint64_t first_begin,
                                const Array<uint64_t>& extent_ends, const Array<uint32_t>& extent_crcs,
                                const Array<uint64_t>& begins, const Array<uint64_t>& ends,
                                const Array<uint64_t>& addresses, int threads, bool allow_direct,
                                bool verify) {
  const auto extents = MakeExtents(first_begin, extent_ends, extent_crcs);
  const auto scatters = MakeScatters(begins, ends, addresses);
  ReadOptions options;
  options.num_threads = threads;
  options.allow_direct = allow_direct;
  options.verify = verify;
  Result<ReadReport> report = Status(StatusCode::kInternal, "not read");
  {
    py::gil_scoped_release release;
    report = ReadVerified(path, file_size, extents, scatters, options);
  }
  const ReadReport value = ValueOrRaise(std::move(report));
  return py::make_tuple(value.damaged_extents, value.bytes_read);
}

uint32_t Crc32cOfBuffer(const py::buffer& buffer) {
  const py::buffer_info info = buffer.request();
  py::gil_scoped_release release;
  return Crc32c(info.ptr, static_cast<size_t>(info.size * info.itemsize));
}

}  // namespace

void BindStorage(py::module_& m) {
  m.def("crc32c", &Crc32cOfBuffer, py::arg("data"), "CRC32C of a contiguous buffer.");
  m.def("read_verified", &ReadVerifiedForPython, py::kw_only(), py::arg("path"), py::arg("file_size"),
        py::arg("first_begin"), py::arg("extent_ends"), py::arg("extent_crc32c"), py::arg("begins"),
        py::arg("ends"), py::arg("addresses"), py::arg("threads"), py::arg("allow_direct"),
        py::arg("verify") = true,
        "Read byte ranges [begins, ends) of a file to memory addresses, verifying every extent they touch.\n"
        "Returns (indices of damaged extents, bytes read).");
}

}  // namespace elastates
