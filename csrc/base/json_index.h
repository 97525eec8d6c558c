// JsonIndex: where the members of one long object stand in a JSON text, without parsing their values.
//
// Who wants one entry of ten thousand finds it after one scan, and parses that entry alone. Values are only
// delimited, never judged, and nesting costs no stack: whether one is JSON shows when it is parsed. Refers to
// the text, which its owner keeps. Immutable once built, so thread-safe.
#ifndef ELASTATES_BASE_JSON_INDEX_H_
#define ELASTATES_BASE_JSON_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace elastates {

struct JsonMember {
  std::string_view key;    // without its quotes
  std::string_view value;  // from its first character to its last
};

class JsonIndex {
 public:
  // Of the object that is the value of the first member `name` of the object that `text` begins with; what
  // comes behind it is not looked at. kInvalidArgument if the text does not go that way, or if a key is not
  // written in printable ASCII without escapes: what such a one says, a parser must tell.
  static Result<JsonIndex> Build(std::string_view text, std::string_view name);

  // The member of that key, the last one if there are several; null if there is none.
  const JsonMember* Find(std::string_view key) const;

  // In the order of the text; of a key that comes twice, both.
  const std::vector<JsonMember>& members() const { return members_; }
  // The object that they are members of.
  std::string_view object() const { return object_; }

 private:
  size_t SlotOf(std::string_view key) const;

  std::string_view object_;
  std::vector<JsonMember> members_;
  std::vector<uint32_t> slots_;  // open addressing, a power of two of them: 1 + position in members_, or 0
};

}  // namespace elastates

#endif  // ELASTATES_BASE_JSON_INDEX_H_
