// JsonIndex for Python.
#include <optional>
#include <string_view>
#include <utility>

#include "base/json_index.h"
#include "bindings/bindings.h"

namespace elastates {
namespace {

using Range = std::pair<size_t, size_t>;

// Keeps the text that the index refers to.
class IndexedText {
 public:
  IndexedText(py::bytes text, std::string_view name)
      : text_(std::move(text)), whole_(text_), index_(Build(whole_, name)) {}

  Range Object() const { return RangeOf(index_.object()); }

  std::optional<Range> Find(const py::handle& key) const {
    py::ssize_t size = 0;
    const char* data = PyUnicode_Check(key.ptr()) ? PyUnicode_AsUTF8AndSize(key.ptr(), &size) : nullptr;
    PyErr_Clear();  // no string, or one that no text can hold: not here
    const JsonMember* member = data == nullptr ? nullptr : index_.Find({data, static_cast<size_t>(size)});
    if (member == nullptr) return std::nullopt;
    return RangeOf(member->value);
  }

  py::list Keys() const {
    py::list keys;
    for (const JsonMember& member : index_.members())
      keys.append(py::str(member.key.data(), member.key.size()));
    return keys;
  }

 private:
  static JsonIndex Build(std::string_view text, std::string_view name) {
    Result<JsonIndex> built = JsonIndex::Build(text, name);
    if (!built.ok()) throw py::value_error(built.status().message());
    return std::move(built).value();
  }

  Range RangeOf(std::string_view part) const {
    const size_t begin = static_cast<size_t>(part.data() - whole_.data());
    return {begin, begin + part.size()};
  }

  const py::bytes text_;
  const std::string_view whole_;
  const JsonIndex index_;
};

}  // namespace

void BindJson(py::module_& m) {
  py::class_<IndexedText>(
      m, "JsonIndex",
      "Where the members of one object in a JSON text stand, found by one scan; values are only\n"
      "delimited. ValueError if the text goes another way, or keys are not all plain ASCII.")
      .def(py::init<py::bytes, std::string_view>(), py::arg("text"), py::arg("name"),
           "Of the object that is the value of the first member ``name`` of the object ``text``.")
      .def_property_readonly("object", &IndexedText::Object,
                             "(begin, end) of that object in the text, bytes.")
      .def("find", &IndexedText::Find, py::arg("key"), "(begin, end) of a member's value, or None.")
      .def("keys", &IndexedText::Keys, "In the order of the text; of a key that comes twice, both.");
}

}  // namespace elastates
