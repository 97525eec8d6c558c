#include "comm/view/note.h"

#include "comm/view/wire.h"

namespace elastates {
namespace {

constexpr size_t kLeastDeathBytes = 8, kLeastCandidateBytes = 8;

void PutDeaths(wire::Writer& writer, const std::vector<Death>& deaths) {
  writer.Put(static_cast<uint32_t>(deaths.size()));
  for (const Death& death : deaths) {
    writer.Put(static_cast<uint32_t>(death.rank));
    writer.PutString(death.vote ? Encode(*death.vote) : "");
  }
}

void PutCandidates(wire::Writer& writer, const std::vector<Candidate>& candidates) {
  writer.Put(static_cast<uint32_t>(candidates.size()));
  for (const Candidate& candidate : candidates) {
    writer.PutString(Encode(candidate.member));
    writer.PutString(candidate.payload);
  }
}

Status GetDeaths(wire::Reader& reader, std::vector<Death>* deaths) {
  for (uint32_t left = reader.GetCount(kLeastDeathBytes); left > 0; --left) {
    Death death{static_cast<int>(reader.Get<uint32_t>()), std::nullopt};
    const std::string bytes = reader.GetString();
    if (!bytes.empty()) {
      Result<Vote> vote = DecodeVote(bytes);
      if (!vote.ok()) return vote.status();
      death.vote = std::move(vote).value();
    }
    deaths->push_back(std::move(death));
  }
  return Status::Ok();
}

Status GetCandidates(wire::Reader& reader, std::vector<Candidate>* candidates) {
  for (uint32_t left = reader.GetCount(kLeastCandidateBytes); left > 0; --left) {
    Result<Member> member = DecodeMember(reader.GetString());
    if (!member.ok()) return member.status();
    candidates->push_back({std::move(member).value(), reader.GetString()});
  }
  return Status::Ok();
}

}  // namespace

std::string Encode(const Note& note) {
  wire::Writer writer;
  writer.Put(static_cast<uint8_t>(note.kind));
  writer.Put(note.epoch);
  writer.Put(note.ballot);
  writer.Put(note.accepted);
  writer.PutString(note.value);
  PutDeaths(writer, note.deaths);
  PutCandidates(writer, note.candidates);
  return writer.Take();
}

Result<Note> DecodeNote(const std::string& bytes) {
  wire::Reader reader(bytes);
  const uint8_t kind = reader.Get<uint8_t>();
  Note note{static_cast<NoteKind>(kind)};
  note.epoch = reader.Get<uint32_t>();
  note.ballot = reader.Get<Ballot>();
  note.accepted = reader.Get<Ballot>();
  note.value = reader.GetString();
  Status status = GetDeaths(reader, &note.deaths);
  if (status.ok()) status = GetCandidates(reader, &note.candidates);
  if (!status.ok()) return status;
  if (reader.AtEnd() && kind <= static_cast<uint8_t>(kLastNoteKind)) return note;
  return Status(StatusCode::kInvalidArgument,
                "a note of " + std::to_string(bytes.size()) + " bytes is not one");
}

}  // namespace elastates
