// What a World watches. Part of view_world.h.
#ifndef ELASTATES_TESTS_CSRC_VIEW_WORLD_CHECKS_H_
#define ELASTATES_TESTS_CSRC_VIEW_WORLD_CHECKS_H_

#include <algorithm>
#include <set>
#include <string>

namespace elastates {

inline void World::OnDecided(int index, const std::string& bytes) {
  Process& process = processes_[index];
  const Result<Decision> decoded = DecodeDecision(bytes);
  if (!decoded.ok()) return Fail("a decision was not understood: " + decoded.status().message());
  const Decision decision = Result<Decision>(decoded).value();
  process.decisions[decision.epoch] = bytes;
  process.is_alarmed = process.membership->HasLostMembers();
  const bool all_are_read =
      options_.num_hosts == 1 || options_.deaths_elsewhere == WorldOptions::Remote::kWithVote;
  for (const Process& other : processes_) {
    // Where a vote is lost with its owner, so may be a decision that nobody alive has heard of.
    if (other.state == State::kDead && !all_are_read) continue;
    const auto decided = other.decisions.find(decision.epoch);
    if (decided != other.decisions.end() && decided->second != bytes)
      Fail("processes " + std::to_string(index) + " and " + std::to_string(IndexOf(other)) +
           " decided differently about epoch " + std::to_string(decision.epoch));
  }
  CheckPayloads(decision);
  CheckLeftOut(index, decision);
}

inline void World::CheckPayloads(const Decision& decision) {
  int last_rank = -1;
  for (const Seat& seat : decision.seats) {
    Process& process = Find(seat.member.id);
    const bool has_joined = seat.old_rank == Seat::kJoined;
    const std::string& given = has_joined ? process.join_payload : process.payloads[decision.epoch - 1];
    if (seat.payload != given)
      Fail("process " + std::to_string(seat.member.id - 1) + " gave \"" + given + "\", not \"" +
           seat.payload + "\"");
    if (seat.old_rank == Seat::kJoined) continue;
    if (seat.old_rank <= last_rank) Fail("old members do not keep their order");
    last_rank = seat.old_rank;
  }
}

// Whoever is left out is dead, or cannot be killed from here.
inline void World::CheckLeftOut(int index, const Decision& decision) {
  if (!IsFair()) return;
  for (int other = 0; other < options_.num_members; ++other) {
    const Process& process = processes_[other];
    const bool was_in =
        process.membership->view().epoch + 1 >= decision.epoch && process.state == State::kRunning;
    if (was_in && process.side == processes_[index].side && !decision.Includes(process.self.id))
      Fail("process " + std::to_string(other) + " is left out of epoch " + std::to_string(decision.epoch) +
           ", but could have been killed first");
  }
}

inline bool World::IsBusy() const {
  return std::any_of(processes_.begin(), processes_.end(), [](const Process& process) {
    return process.state == State::kRunning && process.membership->wants_ticks();
  });
}

inline std::string World::Run(double until) {
  while (!events_.empty() && failure_.empty() && events_.begin()->first.first <= until) {
    now_ = events_.begin()->first.first;
    const std::function<void()> run = std::move(events_.begin()->second);
    events_.erase(events_.begin());
    run();
    if (IsBusy() && now_ < (IsFair() ? 1000 : 300)) last_event_ = std::max(last_event_, now_);
    if (now_ > last_event_ || now_ > 5000) break;
  }
  if (failure_.empty() && IsFair()) CheckEnd();
  return failure_;
}

inline void World::CheckEnd() {
  if (IsBusy()) return Fail("they never agree");
  std::set<MemberId> running;
  const Process* first = nullptr;
  for (const Process& process : processes_) {
    if (process.state != State::kRunning || !process.membership->has_view() || process.is_hung) continue;
    if (first == nullptr) first = &process;
    running.insert(process.self.id);
    if (process.side != first->side) Fail("both sides go on");
    if (!(process.membership->view().members == first->membership->view().members) ||
        process.membership->view().epoch != first->membership->view().epoch)
      Fail("processes " + std::to_string(IndexOf(process)) + " and " + std::to_string(IndexOf(*first)) +
           " end in different views");
  }
  if (first == nullptr) return;
  std::set<MemberId> seated;
  for (const Member& member : first->membership->view().members) {
    if (!Find(member.id).is_hung) seated.insert(member.id);
  }
  if (seated != running) Fail("the last view is not those who run");
}

inline int World::num_running() const {
  return static_cast<int>(std::count_if(processes_.begin(), processes_.end(), [](const Process& process) {
    return process.state == State::kRunning && process.membership->has_view();
  }));
}

inline void World::Fail(const std::string& what) {
  if (failure_.empty())
    failure_ = "seed " + std::to_string(options_.seed) + ", time " + std::to_string(now_) + ": " + what;
}

}  // namespace elastates

#endif  // ELASTATES_TESTS_CSRC_VIEW_WORLD_CHECKS_H_
