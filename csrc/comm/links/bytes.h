// Numbers and texts as bytes, little-endian on every machine: what handshakes and frames are written with.
#ifndef ELASTATES_COMM_LINKS_BYTES_H_
#define ELASTATES_COMM_LINKS_BYTES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace elastates {

template <typename T>
void StoreLittle(T number, char* to) {
  for (size_t i = 0; i < sizeof(T); ++i) to[i] = static_cast<char>(number >> (8 * i));
}

template <typename T>
T LoadLittle(const char* from) {
  T number = 0;
  for (size_t i = 0; i < sizeof(T); ++i)
    number = static_cast<T>(number | static_cast<T>(static_cast<uint8_t>(from[i])) << (8 * i));
  return number;
}

class ByteWriter {
 public:
  template <typename T>
  void Number(T number) {
    char bytes[sizeof(T)];
    StoreLittle(number, bytes);
    text_.append(bytes, sizeof(T));
  }
  void Raw(std::string_view bytes) { text_.append(bytes); }
  void Text(std::string_view text) {  // REQUIRES: shorter than 64 KiB
    Number(static_cast<uint16_t>(text.size()));
    Raw(text);
  }
  std::string Take() { return std::move(text_); }

 private:
  std::string text_;
};

// Reads what a ByteWriter wrote; past the end everything is zero, and ok() is false.
class ByteReader {
 public:
  explicit ByteReader(std::string_view text) : text_(text) {}
  template <typename T>
  T Number() {
    const std::string_view bytes = Raw(sizeof(T));
    return bytes.size() == sizeof(T) ? LoadLittle<T>(bytes.data()) : T{0};
  }
  std::string_view Raw(size_t length) {
    if (length > text_.size()) {
      ok_ = false;
      return {};
    }
    const std::string_view bytes = text_.substr(0, length);
    text_.remove_prefix(length);
    return bytes;
  }
  std::string Text() { return std::string(Raw(Number<uint16_t>())); }
  bool ok() const { return ok_; }
  bool AtEnd() const { return ok_ && text_.empty(); }

 private:
  std::string_view text_;
  bool ok_ = true;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_BYTES_H_
