#include "comm/links/frame.h"

#include "comm/links/bytes.h"

namespace elastates {
namespace {

constexpr uint16_t kMagic = 0x57e1;

std::string CheckSlice(const FrameHeader& header) {
  const uint64_t length = header.length_bytes;
  if (length > kMaxSliceBytes) return "a slice of " + std::to_string(length) + " bytes";
  if (header.total_bytes > kMaxMessageBytes)
    return "a message of " + std::to_string(header.total_bytes) + " bytes";
  if (header.offset_bytes > header.total_bytes || length > header.total_bytes - header.offset_bytes)
    return "a slice that ends beyond its message";
  if (length == 0 && header.total_bytes > 0) return "an empty slice of a message that is not";
  return "";
}

std::string Check(const FrameHeader& header) {
  switch (header.type) {
    case FrameType::kControl:
      return header.length_bytes > kMaxControlBytes ? "a control message that is too long" : "";
    case FrameType::kSlice:
      return CheckSlice(header);
    case FrameType::kReady:
    case FrameType::kGoodbye:
      return header.length_bytes > 0 ? "a payload where none belongs" : "";
  }
  return "a frame of unknown type";
}

}  // namespace

void EncodeFrameHeader(const FrameHeader& header, char* to) {
  StoreLittle(kMagic, to);
  to[2] = static_cast<char>(header.type);
  to[3] = 0;
  StoreLittle(header.length_bytes, to + 4);
  StoreLittle(header.address.group, to + 8);
  StoreLittle(header.address.epoch, to + 16);
  StoreLittle(header.address.tag, to + 20);
  StoreLittle(header.address.sequence, to + 24);
  StoreLittle(header.total_bytes, to + 32);
  StoreLittle(header.offset_bytes, to + 40);
}

bool DecodeFrameHeader(const char* from, FrameHeader* header, std::string* why) {
  if (LoadLittle<uint16_t>(from) != kMagic || from[3] != 0) {
    *why = "bytes that do not begin a frame";
    return false;
  }
  header->type = static_cast<FrameType>(from[2]);
  header->length_bytes = LoadLittle<uint32_t>(from + 4);
  header->address.group = LoadLittle<uint64_t>(from + 8);
  header->address.epoch = LoadLittle<uint32_t>(from + 16);
  header->address.tag = LoadLittle<uint32_t>(from + 20);
  header->address.sequence = LoadLittle<uint64_t>(from + 24);
  header->total_bytes = LoadLittle<uint64_t>(from + 32);
  header->offset_bytes = LoadLittle<uint64_t>(from + 40);
  *why = Check(*header);
  return why->empty();
}

}  // namespace elastates
