// Notes: what members send each other while they agree on a view.
#ifndef ELASTATES_COMM_VIEW_NOTE_H_
#define ELASTATES_COMM_VIEW_NOTE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/member.h"
#include "comm/view/vote.h"

namespace elastates {

enum class NoteKind : uint8_t {
  kJoin,      // to the leader: I am here, with this payload
  kBeat,      // from the leader: I am here, and wait for somebody
  kPrepare,   // from the leader: promise to accept nothing below this ballot
  kPromise,   // the answer, with what has been accepted so far
  kAccept,    // from the leader: accept this value under this ballot
  kAccepted,  // the answer
  kRefuse,    // the answer of who has promised more (`ballot`)
  kDeath,     // somebody has died
  kDecided,   // this is the value
  kStop,      // from the leader: there are too few of us
  kAsk,       // what was decided about this epoch?
  kWelcome,   // to one who joins: the view that you are in
};
constexpr NoteKind kLastNoteKind = NoteKind::kWelcome;

struct Death {
  int rank = 0;
  std::optional<Vote> vote;  // none: nobody could read it
};

// One who wants to join, and what it brings along.
struct Candidate {
  Member member;
  std::string payload;
};

struct Note {
  NoteKind kind = NoteKind::kBeat;
  uint32_t epoch = 0;  // whose end is agreed on
  Ballot ballot = 0;
  Ballot accepted = 0;     // kPromise: the ballot of `value`; kRefuse: what was refused
  std::string value = {};  // kJoin: the payload; kStop: why; kWelcome: the view; else a decision
  std::vector<Death> deaths = {};
  std::vector<Candidate> candidates = {};
};

std::string Encode(const Note& note);
Result<Note> DecodeNote(const std::string& bytes);

}  // namespace elastates

#endif  // ELASTATES_COMM_VIEW_NOTE_H_
