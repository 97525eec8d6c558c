#include "comm/view/membership.h"

#include <algorithm>

#include "comm/view/wire.h"

namespace elastates {
namespace {

constexpr size_t kMostDecisions = 256;  // who is further behind learns only that it is out
constexpr size_t kMostEarlyNotes = 4096;

// The view that somebody joins: its members in full, and the decision that made it.
std::string EncodeWelcome(const View& view, const std::string& decision) {
  wire::Writer writer;
  writer.Put(view.epoch);
  writer.PutString(decision);
  writer.Put(static_cast<uint32_t>(view.members.size()));
  for (const Member& member : view.members) writer.PutString(Encode(member));
  return writer.Take();
}

Result<View> DecodeWelcome(const std::string& bytes, std::string* decision) {
  wire::Reader reader(bytes);
  View view{reader.Get<uint32_t>(), {}};
  *decision = reader.GetString();
  for (uint32_t left = reader.GetCount(4); left > 0; --left) {
    Result<Member> member = DecodeMember(reader.GetString());
    if (!member.ok()) return member.status();
    view.members.push_back(std::move(member).value());
  }
  if (reader.AtEnd()) return view;
  return Status(StatusCode::kInvalidArgument,
                "a welcome of " + std::to_string(bytes.size()) + " bytes is not one");
}

int FindRank(const View& view, MemberId member) {
  for (size_t rank = 0; rank < view.members.size(); ++rank) {
    if (view.members[rank].id == member) return static_cast<int>(rank);
  }
  return -1;
}

}  // namespace

Membership::Membership(MemberId self, AgreementOptions options, VoteStore& votes)
    : self_(self), options_(options), votes_(votes) {}

Status Membership::Open(View view) {
  if (FindRank(view, self_) < 0)
    return Status(StatusCode::kInvalidArgument, "this process is not a member of the group's first view");
  Enter(std::move(view), "");
  return Status::Ok();
}

Actions Membership::Begin(const std::string& payload) {
  Do(agreement_->Begin(payload));
  return Take();
}

Actions Membership::AddCandidate(const Candidate& candidate) {
  const MemberId id = candidate.member.id;
  if (RankOf(id) >= 0 || lost_.find(id) != lost_.end()) return {};
  candidates_[id] = candidate;
  if (has_view() && !is_over_) Do(agreement_->AddCandidate(candidate));
  return Take();
}

Actions Membership::OnTick() {
  if (wants_ticks()) Do(agreement_->OnTick());
  return Take();
}

Actions Membership::OnWitness(uint32_t epoch, bool is_swapped, const std::string& actual) {
  if (epoch == view().epoch) Do(agreement_->OnWitness(is_swapped, actual));
  return Take();
}

Result<Actions> Membership::OnMessage(MemberId from, const std::string& content) {
  Result<Note> decoded = DecodeNote(content);
  if (!decoded.ok()) return decoded.status();
  if (is_over_ || IsDead(from)) return Actions{};
  const Note& note = decoded.value();
  if (note.kind == NoteKind::kWelcome) {
    OnWelcome(note);
  } else if (!has_view()) {
    return Actions{};  // whoever has something to say to one who joins has sent a welcome before
  } else if (note.epoch != view().epoch && options_.rules.epochs_are_kept_apart) {
    note.epoch < view().epoch ? OnNoteOfThePast(from, note) : OnNoteOfTheFuture(from, note);
  } else if (RankOf(from) >= 0) {
    Do(agreement_->OnNote(RankOf(from), note));
  }
  return Take();
}

// The sender is behind, unless the note has been under way for long: then it has no use for the answer.
void Membership::OnNoteOfThePast(MemberId from, const Note& note) {
  if (note.kind == NoteKind::kDecided) return;
  Note answer{NoteKind::kDecided};
  answer.epoch = note.epoch;
  const auto decision = decisions_.find(note.epoch);
  if (decision != decisions_.end()) {
    answer.value = decision->second;
    Send(from, answer);
  } else if (RankOf(from) < 0) {
    answer.value = Encode(Decision{note.epoch + 1, {}});  // whatever it was, the sender is not in it any more
    Send(from, answer);
  }
}

void Membership::OnNoteOfTheFuture(MemberId from, const Note& note) {
  if (early_.size() < kMostEarlyNotes) early_.emplace_back(from, note);
  Note question{NoteKind::kAsk};
  question.epoch = view().epoch;
  Send(from, question);
}

void Membership::OnWelcome(const Note& note) {
  std::string decision;
  Result<View> view = DecodeWelcome(note.value, &decision);
  if (has_view() || !view.ok() || FindRank(view.value(), self_) < 0) return;
  actions_.push_back({Action::Kind::kDecided, 0, decision});
  Enter(std::move(view).value(), decision);
}

Actions Membership::OnLoss(MemberId member, Loss loss, const std::string& proof) {
  const auto known = lost_.find(member);
  if (known != lost_.end() && known->second.loss == Loss::kDead) return {};
  lost_[member] = {loss, proof};
  candidates_.erase(member);
  if (has_view() && !is_over_) TellLoss(member, lost_[member]);
  return Take();
}

void Membership::TellLoss(MemberId member, const Lost& lost) {
  const int rank = RankOf(member);
  if (rank < 0) return agreement_->RemoveCandidate(member);
  Result<Vote> vote = DecodeVote(lost.proof);
  const bool is_readable = lost.loss == Loss::kDead && vote.ok();
  Do(agreement_->OnLoss(rank, lost.loss, is_readable ? std::optional<Vote>(vote.value()) : std::nullopt));
}

void Membership::Do(Actions actions) {
  for (Action& action : actions) {
    const Action::Kind kind = action.kind;
    const std::string content = action.content;
    actions_.push_back(std::move(action));
    if (kind == Action::Kind::kDecided) return GoOn(content);  // always the last
    is_over_ = is_over_ || kind == Action::Kind::kFenced || kind == Action::Kind::kNoQuorum;
  }
}

void Membership::GoOn(const std::string& decision) {
  Result<Decision> decoded = DecodeDecision(decision);
  Result<View> next = decoded.ok() ? NextView(view(), decoded.value()) : Result<View>(decoded.status());
  if (!next.ok()) {
    is_over_ = true;
    actions_.back() = {Action::Kind::kNoQuorum, 0, next.status().message()};
    return;
  }
  decisions_[view().epoch] = decision;
  if (decisions_.size() > kMostDecisions) decisions_.erase(decisions_.begin());
  WelcomeJoined(decoded.value(), next.value());
  Enter(std::move(next).value(), decision);
}

// From every member: whoever made the decision may be gone.
void Membership::WelcomeJoined(const Decision& decision, const View& view) {
  Note welcome{NoteKind::kWelcome};
  welcome.epoch = view.epoch;
  welcome.value = EncodeWelcome(view, Encode(decision));
  for (const Seat& seat : decision.seats) {
    if (seat.old_rank == Seat::kJoined) Send(seat.member.id, welcome);
  }
}

void Membership::Enter(View view, const std::string& decision) {
  const int self = FindRank(view, self_);
  last_decision_ = decision;
  agreement_ = std::make_unique<Agreement>(std::move(view), self, options_, votes_, decision);
  for (const Member& member : std::vector<Member>(this->view().members)) {
    const auto lost = lost_.find(member.id);
    if (lost != lost_.end()) TellLoss(member.id, lost->second);
    candidates_.erase(member.id);
  }
  for (auto& [id, lost] : lost_)
    if (RankOf(id) < 0)
      std::string().swap(lost.proof);  // never to be a member again: its vote counts no more
  for (const auto& [id, candidate] : candidates_) Do(agreement_->AddCandidate(candidate));
  Replay();
}

void Membership::Replay() {
  const uint32_t epoch = view().epoch;
  const auto early = std::exchange(early_, {});
  for (const auto& [from, note] : early) {
    if (is_over_ || note.epoch < view().epoch || RankOf(from) < 0) continue;
    if (note.epoch > epoch) {
      early_.emplace_back(from, note);
    } else if (view().epoch == epoch) {
      Do(agreement_->OnNote(RankOf(from), note));
    }
  }
}

void Membership::Send(MemberId to, const Note& note) {
  actions_.push_back({Action::Kind::kSend, to, Encode(note)});
}

bool Membership::HasLostMembers() const {
  const std::vector<Member>& members = view().members;
  return std::any_of(members.begin(), members.end(),
                     [this](const Member& member) { return lost_.find(member.id) != lost_.end(); });
}

bool Membership::IsDead(MemberId member) const {
  const auto lost = lost_.find(member);
  return options_.rules.dead_are_unheard && lost != lost_.end() && lost->second.loss == Loss::kDead;
}

int Membership::RankOf(MemberId member) const { return has_view() ? FindRank(view(), member) : -1; }

}  // namespace elastates
