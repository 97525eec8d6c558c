// One schedule per rule of the agreement: with the rule all is well, without it two members that both may act
// hold different decisions. docs/protocol.md tells the same stories in words.
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "comm/view/agreement.h"

using elastates::Action;
using elastates::Actions;
using elastates::Agreement;
using elastates::AgreementOptions;
using elastates::AgreementRules;
using elastates::DecodeNote;
using elastates::DecodeVote;
using elastates::Loss;
using elastates::Member;
using elastates::Note;
using elastates::NoteKind;
using elastates::Result;
using elastates::Status;
using elastates::View;
using elastates::Vote;
using elastates::VoteStore;

namespace {

struct Memory : VoteStore {
  std::string bytes;
  Status Write(const std::string& written) override {
    bytes = written;
    return Status::Ok();
  }
};

// Members whose notes wait until the test delivers or drops them.
class Table {
 public:
  Table(int num_members, AgreementRules rules) : votes_(num_members), decisions_(num_members) {
    View view{1, {}};
    for (int rank = 0; rank < num_members; ++rank) {
      Member member;
      member.id = rank + 1;
      view.members.push_back(member);
    }
    AgreementOptions options;
    options.rules = rules;
    for (int rank = 0; rank < num_members; ++rank)
      members_.push_back(std::make_unique<Agreement>(view, rank, options, votes_[rank], ""));
    for (int rank = 0; rank < num_members; ++rank)
      Do(rank, members_[rank]->Begin("p" + std::to_string(rank)));
  }

  // All notes of this kind that wait from one member to another, in order; false if there are none.
  bool Deliver(int from, int to, NoteKind kind) {
    bool has_delivered = false;
    for (size_t i = 0; i < sent_.size();) {
      if (sent_[i].from != from || sent_[i].to != to || sent_[i].note.kind != kind) {
        ++i;
        continue;
      }
      const Note note = sent_[i].note;
      sent_.erase(sent_.begin() + static_cast<long>(i));
      Do(to, members_[to]->OnNote(from, note));
      has_delivered = true;
    }
    return has_delivered;
  }
  void Ask(int leader, int member, NoteKind question, NoteKind answer) {
    CHECK(Deliver(leader, member, question));
    CHECK(Deliver(member, leader, answer));
  }
  // Everything between these members, for so many ticks.
  void Settle(const std::vector<int>& members, int num_ticks = 60) {
    for (int tick = 0; tick < num_ticks; ++tick) {
      bool is_anything_new = true;
      while (is_anything_new) {
        is_anything_new = false;
        for (const int from : members) {
          for (const int to : members) {
            for (int kind = 0; kind <= static_cast<int>(elastates::kLastNoteKind); ++kind)
              is_anything_new = Deliver(from, to, static_cast<NoteKind>(kind)) || is_anything_new;
          }
        }
      }
      for (const int rank : members) Do(rank, members_[rank]->OnTick());
    }
  }
  void TellDead(int observer, int rank, bool is_readable) {
    Result<Vote> vote = DecodeVote(votes_[rank].bytes);
    const std::optional<Vote> left = vote.ok() ? vote.value() : Vote{};
    Do(observer, members_[observer]->OnLoss(rank, Loss::kDead, is_readable ? left : std::nullopt));
  }
  void TellUnreachable(int observer, int rank) {
    Do(observer, members_[observer]->OnLoss(rank, Loss::kUnreachable, std::nullopt));
  }
  void Cut(const std::vector<int>& here, const std::vector<int>& there) {
    for (const int a : here) {
      for (const int b : there) {
        TellUnreachable(a, b);
        TellUnreachable(b, a);
      }
    }
  }
  void ForgetVotes(int rank) { votes_[rank].bytes = Encode(Vote{}); }
  const std::string& decision(int rank) const { return decisions_[rank]; }

 private:
  struct Sent {
    int from, to;
    Note note;
  };
  void Do(int rank, const Actions& actions) {
    for (const Action& action : actions) {
      if (action.kind == Action::Kind::kDecided) decisions_[rank] = action.content;
      if (action.kind == Action::Kind::kSend) Post(rank, action);
    }
  }
  void Post(int from, const Action& action) {
    const Note note = DecodeNote(action.content).value();
    if (note.kind == NoteKind::kDecided) decisions_[from] = note.value;  // also one that it is not in
    sent_.push_back({from, static_cast<int>(action.member) - 1, note});
  }

  std::vector<Memory> votes_;
  std::vector<std::unique_ptr<Agreement>> members_;
  std::deque<Sent> sent_;
  std::vector<std::string> decisions_;
};

bool Differ(const Table& table, int a, int b) {
  return !table.decision(a).empty() && !table.decision(b).empty() && table.decision(a) != table.decision(b);
}

void Join(Table& table, int leader, const std::vector<int>& members) {
  for (const int member : members) table.Deliver(member, leader, NoteKind::kJoin);
}

// 0 decides with the votes of 1 and 2, and goes on behind a cable that is cut; 1 and 2 die. What are 3 and 4,
// the majority of those who may be alive, to do?
bool VotesOfTheDeadAreMissed(AgreementRules rules, bool forget) {
  Table table(5, rules);
  Join(table, 0, {1, 2, 3, 4});
  for (const int member : {1, 2}) table.Ask(0, member, NoteKind::kPrepare, NoteKind::kPromise);
  for (const int member : {1, 2}) table.Ask(0, member, NoteKind::kAccept, NoteKind::kAccepted);
  CHECK_NE(table.decision(0), "");
  table.Cut({0}, {3, 4});
  for (const int dead : {1, 2}) {
    if (forget) table.ForgetVotes(dead);
    for (const int observer : {3, 4}) table.TellDead(observer, dead, true);
  }
  table.Settle({3, 4});
  CHECK_NE(table.decision(3), "");
  return Differ(table, 0, 3);
}

// 2 leads behind a cut, with the promises of 3 and 4, who then die; 0 counts on without them.
bool PromisesOfTheDeadAreMissed(AgreementRules rules) {
  Table table(5, rules);
  Join(table, 0, {1, 3, 4});
  table.Cut({2, 3, 4}, {0, 1});
  for (const int member : {3, 4, 2}) table.Settle({member}, 5);  // they give up 0 and 1
  Join(table, 2, {3, 4});
  for (const int leader : {0, 2}) table.Settle({leader}, 5);  // both give up the other side, and prepare
  for (const int member : {3, 4}) table.Ask(2, member, NoteKind::kPrepare, NoteKind::kPromise);
  for (const int observer : {0, 2}) {
    for (const int dead : {3, 4}) table.TellDead(observer, dead, true);
  }
  while (table.Deliver(0, 1, NoteKind::kPrepare) || table.Deliver(1, 0, NoteKind::kPromise) ||
         table.Deliver(0, 1, NoteKind::kAccept) || table.Deliver(1, 0, NoteKind::kAccepted)) {
  }
  CHECK_NE(table.decision(0), "");
  while (table.Deliver(2, 1, NoteKind::kAccept) || table.Deliver(1, 2, NoteKind::kAccepted)) {
  }
  return Differ(table, 0, 2);
}

// 0 decides and tells, and dies with 1 and 2 and all their votes; its words to 4 come late.
bool TheDeadAreHeard(AgreementRules rules) {
  Table table(5, rules);
  Join(table, 0, {1, 2, 3, 4});
  for (const int member : {1, 2}) table.Ask(0, member, NoteKind::kPrepare, NoteKind::kPromise);
  for (const int member : {1, 2}) table.Ask(0, member, NoteKind::kAccept, NoteKind::kAccepted);
  for (const int dead : {0, 1, 2}) {
    for (const int observer : {3, 4}) table.TellDead(observer, dead, false);
  }
  Join(table, 3, {4});
  table.Ask(3, 4, NoteKind::kPrepare, NoteKind::kPromise);
  table.Ask(3, 4, NoteKind::kAccept, NoteKind::kAccepted);
  CHECK_NE(table.decision(3), "");
  CHECK(table.Deliver(0, 4, NoteKind::kDecided));
  return Differ(table, 3, 4);
}

// 0 has the answers of 1 and 2, the only others alive, before any of them hears of the deaths of 3 to 6. 0
// cannot read what those voted, 1 and 2 can.
bool UnreadDeathsCountAfterwards(AgreementRules rules) {
  Table table(7, rules);
  Join(table, 0, {1, 2, 3, 4, 5, 6});
  for (const int member : {1, 2, 4}) table.Ask(0, member, NoteKind::kPrepare, NoteKind::kPromise);
  table.Cut({3, 4, 5, 6}, {0, 1, 2});
  for (const int member : {4, 5, 6, 3}) table.Settle({member}, 7);  // they give up 0, 1 and 2
  Join(table, 3, {4, 5, 6});
  table.Settle({3}, 5);
  for (const int member : {4, 5, 6}) table.Ask(3, member, NoteKind::kPrepare, NoteKind::kPromise);
  for (const int member : {1, 2}) table.Ask(0, member, NoteKind::kAccept, NoteKind::kAccepted);
  CHECK_EQ(table.decision(0), "");
  for (const int dead : {3, 4, 5, 6}) table.TellDead(0, dead, false);
  table.Cut({0}, {1, 2});
  for (const int dead : {3, 4, 5, 6}) {
    for (const int observer : {1, 2}) table.TellDead(observer, dead, true);
  }
  table.Settle({1, 2});
  CHECK_NE(table.decision(1), "");
  return Differ(table, 0, 1);
}

}  // namespace

TEST(votes_are_written_before_they_are_sent) {
  AgreementRules rules;
  CHECK(!VotesOfTheDeadAreMissed(rules, false));
  rules.vote_is_written_first = false;
  CHECK(VotesOfTheDeadAreMissed(rules, false));
}

TEST(proofs_of_death_carry_the_vote) { CHECK(VotesOfTheDeadAreMissed({}, true)); }

TEST(promises_of_the_dead_bind) {
  AgreementRules rules;
  CHECK(!PromisesOfTheDeadAreMissed(rules));
  rules.dead_promises_bind = false;
  CHECK(PromisesOfTheDeadAreMissed(rules));
}

TEST(the_dead_are_not_heard) {
  AgreementRules rules;
  CHECK(!TheDeadAreHeard(rules));
  rules.dead_are_unheard = false;
  CHECK(TheDeadAreHeard(rules));
}

TEST(unread_deaths_need_consent) {
  AgreementRules rules;
  CHECK(!UnreadDeathsCountAfterwards(rules));
  rules.unread_deaths_need_consent = false;
  CHECK(UnreadDeathsCountAfterwards(rules));
}

int main() { return RUN_ALL_TESTS(); }
