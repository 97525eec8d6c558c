#include "comm/view/decision.h"

#include <algorithm>

#include "comm/view/wire.h"

namespace elastates {
namespace {

constexpr size_t kLeastSeatBytes = 16;  // old rank, id, length of the payload

Status Invalid(const std::string& what) {
  return Status(StatusCode::kInvalidArgument, "a decision about a view " + what);
}

void Put(wire::Writer& writer, const Seat& seat) {
  writer.Put(static_cast<uint32_t>(seat.old_rank));
  if (seat.old_rank == Seat::kJoined) {
    writer.PutString(Encode(seat.member));
  } else {
    writer.Put(seat.member.id);
  }
  writer.PutString(seat.payload);
}

Result<Seat> GetSeat(wire::Reader& reader) {
  Seat seat;
  seat.old_rank = static_cast<int>(reader.Get<uint32_t>());
  if (seat.old_rank == Seat::kJoined) {
    Result<Member> member = DecodeMember(reader.GetString());
    if (!member.ok()) return member.status();
    seat.member = std::move(member).value();
  } else {
    seat.member.id = reader.Get<uint64_t>();
  }
  seat.payload = reader.GetString();
  return seat;
}

}  // namespace

bool Decision::Includes(MemberId id) const {
  return std::any_of(seats.begin(), seats.end(), [id](const Seat& seat) { return seat.member.id == id; });
}

std::string Encode(const Decision& decision) {
  wire::Writer writer;
  writer.Put(decision.epoch);
  writer.Put(static_cast<uint32_t>(decision.seats.size()));
  for (const Seat& seat : decision.seats) Put(writer, seat);
  return writer.Take();
}

Result<Decision> DecodeDecision(const std::string& bytes) {
  wire::Reader reader(bytes);
  Decision decision;
  decision.epoch = reader.Get<uint32_t>();
  for (uint32_t left = reader.GetCount(kLeastSeatBytes - 4); left > 0; --left) {
    Result<Seat> seat = GetSeat(reader);
    if (!seat.ok()) return seat.status();
    decision.seats.push_back(std::move(seat).value());
  }
  if (!reader.AtEnd()) return Invalid("of " + std::to_string(bytes.size()) + " bytes is not one");
  return decision;
}

Result<View> NextView(const View& before, const Decision& decision) {
  if (decision.epoch != before.epoch + 1) {
    return Invalid("opens epoch " + std::to_string(decision.epoch) + ", but epoch " +
                   std::to_string(before.epoch) + " is the present one");
  }
  View next{decision.epoch, {}};
  for (const Seat& seat : decision.seats) {
    if (seat.old_rank == Seat::kJoined) {
      next.members.push_back(seat.member);
    } else if (static_cast<size_t>(seat.old_rank) < before.members.size() &&
               before.members[seat.old_rank].id == seat.member.id) {
      next.members.push_back(before.members[seat.old_rank]);
    } else {
      return Invalid("seats a member as old rank " + std::to_string(seat.old_rank) + " who was not that");
    }
  }
  return next;
}

}  // namespace elastates
