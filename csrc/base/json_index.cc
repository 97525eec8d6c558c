#include "base/json_index.h"

#include <array>
#include <functional>
#include <string>
#include <utility>

namespace elastates {
namespace {

enum CharClass : unsigned char { kOther = 0, kQuote, kOpen, kClose, kBetween };

// What matters between strings. A comma, a colon or white space ends a number or a word.
constexpr std::array<unsigned char, 256> MakeClasses() {
  std::array<unsigned char, 256> classes{};
  classes['"'] = kQuote;
  classes['{'] = classes['['] = kOpen;
  classes['}'] = classes[']'] = kClose;
  for (const char c : {',', ':', ' ', '\t', '\n', '\r'}) classes[static_cast<unsigned char>(c)] = kBetween;
  return classes;
}

constexpr auto kClasses = MakeClasses();

CharClass ClassOf(char c) { return static_cast<CharClass>(kClasses[static_cast<unsigned char>(c)]); }

// Goes through a text once, forwards. What returns false has found something else than it names.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  size_t at() const { return at_; }

  bool Take(char expected) {
    SkipSpace();
    if (at_ == text_.size() || text_[at_] != expected) return false;
    ++at_;
    return true;
  }

  // A key, its colon, and what stands between that and the value.
  bool Key(std::string_view* key) {
    SkipSpace();
    const size_t begin = at_;
    if (!String()) return false;
    *key = text_.substr(begin + 1, at_ - begin - 2);
    if (!Take(':')) return false;
    SkipSpace();
    return true;
  }

  // A string, whatever lies between a pair of brackets, or a number or word; at least one character.
  bool Value(std::string_view* value) {
    const size_t begin = at_;
    size_t depth = 0;
    do {
      if (at_ == text_.size()) return false;
      const CharClass kind = ClassOf(text_[at_]);
      if (kind == kQuote) {
        if (!String()) return false;
        continue;
      }
      if (kind == kClose && depth-- == 0) return false;
      if (kind == kOpen) ++depth;
      if (kind == kOther && depth == 0) {
        Word();
      } else if (kind == kBetween && depth == 0) {
        return false;
      } else {
        ++at_;
      }
    } while (depth > 0);
    *value = text_.substr(begin, at_ - begin);
    return true;
  }

 private:
  void SkipSpace() {
    while (at_ < text_.size() && ClassOf(text_[at_]) == kBetween && text_[at_] != ',' && text_[at_] != ':')
      ++at_;
  }

  void Word() {
    while (at_ < text_.size() && ClassOf(text_[at_]) == kOther) ++at_;
  }

  bool String() {
    if (at_ == text_.size() || text_[at_] != '"') return false;
    for (++at_; at_ < text_.size(); ++at_) {
      if (text_[at_] == '"') {
        ++at_;
        return true;
      }
      if (text_[at_] == '\\' && ++at_ == text_.size()) return false;
    }
    return false;
  }

  const std::string_view text_;
  size_t at_ = 0;
};

bool IsPlain(std::string_view key) {
  for (const char c : key) {
    if (c < 0x20 || c > 0x7E || c == '\\') return false;
  }
  return true;
}

// Reads members up to the object's end, or until visit(key) is false, which is asked before each value.
template <typename Visit, typename Keep>
bool ForEachMember(Scanner* scanner, const Visit& visit, const Keep& keep) {
  if (!scanner->Take('{')) return false;
  if (scanner->Take('}')) return true;
  do {
    JsonMember member;
    if (!scanner->Key(&member.key)) return false;
    if (!visit(member.key)) return true;
    if (!scanner->Value(&member.value)) return false;
    keep(member);
  } while (scanner->Take(','));
  return scanner->Take('}');
}

Status Refuse(const char* what, const Scanner& scanner) {
  return Status(StatusCode::kInvalidArgument, std::string(what) + " at byte " + std::to_string(scanner.at()));
}

}  // namespace

Result<JsonIndex> JsonIndex::Build(std::string_view text, std::string_view name) {
  Scanner scanner(text);
  bool found = false;
  const auto is_another = [&](std::string_view key) { return !(found = key == name); };
  if (!ForEachMember(&scanner, is_another, [](const JsonMember&) {}) || !found) {
    return Refuse("no such member before something unexpected", scanner);
  }
  JsonIndex index;
  const size_t begin = scanner.at();
  bool plain = true;
  const auto is_plain = [&](std::string_view key) { return plain = IsPlain(key); };
  const auto keep = [&](const JsonMember& member) { index.members_.push_back(member); };
  if (!ForEachMember(&scanner, is_plain, keep)) return Refuse("something unexpected", scanner);
  if (!plain) return Refuse("a key that needs a parser", scanner);
  index.object_ = text.substr(begin, scanner.at() - begin);

  size_t num_slots = 16;
  while (num_slots < 2 * index.members_.size()) num_slots *= 2;
  index.slots_.resize(num_slots);
  for (size_t i = 0; i < index.members_.size(); ++i) {
    index.slots_[index.SlotOf(index.members_[i].key)] = static_cast<uint32_t>(i + 1);
  }
  return index;
}

const JsonMember* JsonIndex::Find(std::string_view key) const {
  const uint32_t found = slots_[SlotOf(key)];
  return found == 0 ? nullptr : &members_[found - 1];
}

// Where the key is, or would be put.
size_t JsonIndex::SlotOf(std::string_view key) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = std::hash<std::string_view>()(key) & mask;
  while (slots_[slot] != 0 && members_[slots_[slot] - 1].key != key) slot = (slot + 1) & mask;
  return slot;
}

}  // namespace elastates
