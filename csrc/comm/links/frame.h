// Frames: what travels over a link once the handshake is over. A header of fixed size, then its payload.
//
// A message is one slice or many, which may take different sockets of the link and arrive in any order; each
// names the whole message. Slices are short, so that nothing urgent waits long behind one.
#ifndef ELASTATES_COMM_LINKS_FRAME_H_
#define ELASTATES_COMM_LINKS_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/messenger.h"

namespace elastates {

enum class FrameType : uint8_t {
  kControl = 1,  // payload: the content
  kSlice = 2,    // payload: bytes [offset, offset + length) of the message
  kReady = 3,    // of who was dialled: its end of the first socket stands, more may follow
  kGoodbye = 4,  // the pool closes; what follows is no accident
};

constexpr size_t kFrameHeaderBytes = 48;
constexpr size_t kMaxSliceBytes = size_t{1} << 20;
constexpr size_t kMaxControlBytes = size_t{64} << 20;
constexpr uint64_t kMaxMessageBytes = uint64_t{1} << 40;

struct FrameHeader {
  FrameType type = FrameType::kControl;
  uint32_t length_bytes = 0;  // of the payload
  MessageAddress address;     // slices only, as all below
  uint64_t total_bytes = 0;
  uint64_t offset_bytes = 0;
};

void EncodeFrameHeader(const FrameHeader& header, char* to);

// False for bytes that no peer of ours can have sent; `why` says what is wrong.
[[nodiscard]] bool DecodeFrameHeader(const char* from, FrameHeader* header, std::string* why);

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_FRAME_H_
