#include "comm/links/greeting.h"

#include <algorithm>

#include "comm/links/bytes.h"

namespace elastates {
namespace {

constexpr char kMagic[4] = {'E', 'L', 'W', 'L'};
constexpr uint8_t kVersion = 1;

Digest Prove(std::string_view secret, std::string_view role, std::string_view hello,
             std::string_view answer) {
  ByteWriter said;
  said.Text(role);
  said.Text(hello);
  said.Text(answer);
  return HmacSha256(secret, said.Take());
}

}  // namespace

const char* Describe(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone:
      return "not refused";
    case Refusal::kWrongJob:
      return "it belongs to another job";
    case Refusal::kWrongMember:
      return "the address belongs to another member";
    case Refusal::kWrongPid:
      return "it is not the process that it says it is";
    case Refusal::kWrongSecret:
      return "it does not know the job's secret";
    case Refusal::kLost:
      return "it was lost before, and a link is made once";
    case Refusal::kLinked:
      return "there is a link already, or one is being made";
    case Refusal::kNoLink:
      return "a further socket came without its link";
    case Refusal::kMalformed:
      return "it does not speak this protocol";
    case Refusal::kTooSlow:
      return "it did not answer in time";
  }
  return "for a reason that this version does not know";
}

std::string EncodeGreeting(GreetingType type, std::string_view body) {
  ByteWriter writer;
  writer.Raw({kMagic, sizeof(kMagic)});
  writer.Number(kVersion);
  writer.Number(static_cast<uint8_t>(type));
  writer.Text(body);  // its length completes the header
  return writer.Take();
}

std::string EncodeBody(const Greeting& greeting) {
  ByteWriter writer;
  writer.Number(greeting.to);
  writer.Number(greeting.link);
  writer.Number(greeting.socket);
  writer.Number(greeting.num_bulk_sockets);
  writer.Number(greeting.epoch);
  writer.Number(static_cast<uint8_t>(greeting.has_segment));
  writer.Raw({reinterpret_cast<const char*>(greeting.nonce.data()), greeting.nonce.size()});
  writer.Text(greeting.job);
  writer.Text(Encode(greeting.member));
  return writer.Take();
}

bool DecodeGreetingHeader(const char* from, GreetingHeader* header, std::string* why) {
  ByteReader reader({from, kGreetingHeaderBytes});
  if (reader.Raw(sizeof(kMagic)) != std::string_view(kMagic, sizeof(kMagic))) {
    *why = "it does not speak this protocol";
    return false;
  }
  const uint8_t version = reader.Number<uint8_t>();
  const uint8_t type = reader.Number<uint8_t>();
  header->type = static_cast<GreetingType>(type);
  header->body_bytes = reader.Number<uint16_t>();
  if (version != kVersion) {
    *why = "it speaks version " + std::to_string(version) + ", this is version " + std::to_string(kVersion);
    return false;
  }
  if (type < static_cast<uint8_t>(GreetingType::kHello) ||
      type > static_cast<uint8_t>(GreetingType::kRefuse) || header->body_bytes > kMaxGreetingBodyBytes) {
    *why = "it sent a malformed greeting";
    return false;
  }
  return true;
}

Result<Greeting> DecodeBody(std::string_view body) {
  ByteReader reader(body);
  Greeting greeting;
  greeting.to = reader.Number<uint64_t>();
  greeting.link = reader.Number<uint64_t>();
  greeting.socket = reader.Number<uint8_t>();
  greeting.num_bulk_sockets = reader.Number<uint8_t>();
  greeting.epoch = reader.Number<uint32_t>();
  greeting.has_segment = reader.Number<uint8_t>() != 0;
  const std::string_view nonce = reader.Raw(greeting.nonce.size());
  std::copy(nonce.begin(), nonce.end(), greeting.nonce.begin());
  greeting.job = reader.Text();
  const std::string handle = reader.Text();
  if (!reader.AtEnd() || greeting.job.size() > kMaxJobBytes || handle.size() > kMaxHandleBytes ||
      greeting.num_bulk_sockets > kMaxBulkSockets || greeting.socket > greeting.num_bulk_sockets)
    return Status(StatusCode::kInvalidArgument, "it sent a malformed greeting");
  Result<Member> member = DecodeMember(handle);
  if (!member.ok()) return member.status();
  greeting.member = std::move(member).value();
  return greeting;
}

Digest DialerProof(std::string_view secret, std::string_view hello, std::string_view answer) {
  return Prove(secret, "dialer", hello, answer);
}

Digest AcceptorProof(std::string_view secret, std::string_view hello, std::string_view answer) {
  return Prove(secret, "acceptor", hello, answer);
}

}  // namespace elastates
