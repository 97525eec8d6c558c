#include "comm/view/vote.h"

#include "comm/view/wire.h"

namespace elastates {

std::string Encode(const Vote& vote) {
  wire::Writer writer;
  writer.Put(vote.epoch);
  writer.Put(vote.promised);
  writer.Put(vote.accepted);
  writer.PutString(vote.value);
  writer.PutString(vote.decision);
  return writer.Take();
}

Result<Vote> DecodeVote(const std::string& bytes) {
  wire::Reader reader(bytes);
  Vote vote;
  vote.epoch = reader.Get<uint32_t>();
  vote.promised = reader.Get<Ballot>();
  vote.accepted = reader.Get<Ballot>();
  vote.value = reader.GetString();
  vote.decision = reader.GetString();
  if (reader.AtEnd()) return vote;
  return Status(StatusCode::kInvalidArgument,
                "a vote of " + std::to_string(bytes.size()) + " bytes is not one");
}

}  // namespace elastates
