// Numbers and strings as bytes and back, for what members tell each other about views.
//
// Little endian, strings with their length in front. A Reader never reads past the end: what is missing comes
// out as zero or empty and ok() turns false, so that a decoder checks once, at its end.
#ifndef ELASTATES_COMM_VIEW_WIRE_H_
#define ELASTATES_COMM_VIEW_WIRE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace elastates::wire {

class Writer {
 public:
  template <typename Number>
  void Put(Number number) {
    static_assert(std::is_unsigned_v<Number>);
    for (size_t i = 0; i < sizeof(Number); ++i) bytes_.push_back(static_cast<char>(number >> (8 * i)));
  }
  void PutString(std::string_view text) {
    Put(static_cast<uint32_t>(text.size()));
    bytes_.append(text);
  }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  template <typename Number>
  Number Get() {
    static_assert(std::is_unsigned_v<Number>);
    Number number = 0;
    const std::string_view bytes = Next(sizeof(Number));
    for (size_t i = 0; i < bytes.size(); ++i) number |= Number{static_cast<uint8_t>(bytes[i])} << (8 * i);
    return number;
  }
  std::string GetString() { return std::string(Next(Get<uint32_t>())); }

  // A count of things of at least `least_bytes` each; 0 if there cannot be so many.
  uint32_t GetCount(size_t least_bytes) {
    const uint32_t count = Get<uint32_t>();
    ok_ = ok_ && count <= rest_.size() / least_bytes;
    return ok_ ? count : 0;
  }
  bool ok() const { return ok_; }
  bool AtEnd() const { return ok_ && rest_.empty(); }

 private:
  std::string_view Next(size_t size_bytes) {
    ok_ = ok_ && size_bytes <= rest_.size();
    if (!ok_) return {};
    const std::string_view taken = rest_.substr(0, size_bytes);
    rest_.remove_prefix(size_bytes);
    return taken;
  }

  std::string_view rest_;
  bool ok_ = true;
};

}  // namespace elastates::wire

#endif  // ELASTATES_COMM_VIEW_WIRE_H_
