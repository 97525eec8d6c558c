// Handshake messages as bytes: pure functions; handshake.h is who sends them.
//
//   dialer   -> Hello    who I am, whom I want, a nonce
//   acceptor -> Answer   who I am, a nonce                       (or Refuse)
//   dialer   -> Proof    HMAC(secret, "dialer" Hello Answer)
//   acceptor -> Welcome  HMAC(secret, "acceptor" Hello Answer)   (or Refuse)
//   dialer   -> Confirm
//
// Both nonces are in both proofs, so that none can be used twice. The proofs tell who is at the other end;
// they neither hide nor sign what follows.
#ifndef ELASTATES_COMM_LINKS_GREETING_H_
#define ELASTATES_COMM_LINKS_GREETING_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "comm/links/sha256.h"
#include "comm/member.h"

namespace elastates {

enum class GreetingType : uint8_t { kHello = 1, kAnswer, kProof, kWelcome, kConfirm, kRefuse };

// Why an acceptor sends a dialer away.
enum class Refusal : uint8_t {
  kNone = 0,
  kWrongJob,
  kWrongMember,  // the address belongs to another process now
  kWrongPid,     // not the process it says it is
  kWrongSecret,
  kLost,       // was lost before: a link is made once
  kLinked,     // there is a link already, or the other one dials
  kNoLink,     // another socket for a link that there is not
  kMalformed,  // understood nothing
  kTooSlow,
};
const char* Describe(Refusal refusal);

constexpr size_t kGreetingHeaderBytes = 8;
constexpr size_t kMaxGreetingBodyBytes = 2048;
constexpr size_t kMaxJobBytes = 64;
constexpr size_t kMaxHandleBytes = 1024;
constexpr int kMaxBulkSockets = 16;

struct Greeting {
  MemberId to = 0;
  uint64_t link = 0;  // drawn by the dialer, equal on all sockets of the link
  uint8_t socket = 0;
  uint8_t num_bulk_sockets = 0;
  uint32_t epoch = 0;  // the highest the sender knows
  bool has_segment = false;
  std::array<uint8_t, 16> nonce = {};
  std::string job;
  Member member;  // the sender
};

// With the header.
std::string EncodeGreeting(GreetingType type, std::string_view body);
std::string EncodeBody(const Greeting& greeting);

struct GreetingHeader {
  GreetingType type = GreetingType::kHello;
  size_t body_bytes = 0;
};

// False, with `why`, for what cannot be the header of a greeting of this version.
[[nodiscard]] bool DecodeGreetingHeader(const char* from, GreetingHeader* header, std::string* why);
Result<Greeting> DecodeBody(std::string_view body);

// `hello` and `answer`: the two bodies as they were sent.
Digest DialerProof(std::string_view secret, std::string_view hello, std::string_view answer);
Digest AcceptorProof(std::string_view secret, std::string_view hello, std::string_view answer);

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_GREETING_H_
