// A simulated world for Membership: processes, links, deaths, sleep, cut cables and a witness, all by seed
// and in virtual time, whose unit is one tick.
//
//   World world({.seed = 7, .num_members = 5});
//   world.At(0.5, [&] { world.Kill(0); });
//   CHECK_EQ(world.Run(), "");  // what went wrong, or nothing
//
// It watches what must never happen (two decisions for one epoch, payloads that nobody gave, somebody left
// out who could have been killed first) and, in fair weather, what must happen in the end.
#ifndef ELASTATES_TESTS_CSRC_VIEW_WORLD_H_
#define ELASTATES_TESTS_CSRC_VIEW_WORLD_H_

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "comm/view/membership.h"

namespace elastates {

struct WorldOptions {
  uint64_t seed = 0;
  int num_members = 4;
  int num_joiners = 0;
  int num_hosts = 1;
  double max_delay = 0.05;  // ticks; far below one: fair weather, in which nobody is suspected wrongly
  enum class Remote { kWithVote, kWithoutVote, kNothing } deaths_elsewhere = Remote::kWithVote;
  bool has_witness = false;
  AgreementRules rules = {};
  bool proofs_carry_votes = true;  // a rule of the links' rather than of the agreement's
};

class World {
 public:
  explicit World(WorldOptions options);

  void At(double time, std::function<void()> run) {
    last_event_ = std::max(last_event_, time);
    AddEvent(time, std::move(run));
  }
  void Kill(int index);
  // Its training thread never takes part in an agreement; the rest of it works.
  void Hang(int index) { processes_[index].is_hung = true; }
  void Sleep(int index) { processes_[index].is_asleep = true; }
  void Wake(int index);
  void KillAfterSends(int index, int count) { processes_[index].sends_left = count; }
  // Who has a bit set is on the other side of the cable from now on.
  void Cut(uint32_t side_bits);
  void PutWitness(int side) { witness_side_ = side; }  // only that side reaches it; 2: nobody
  void Grow();                                         // all take part, the joiners are known

  // Until nothing happens any more; the first thing that went wrong. Fair weather and a quiet end: survivors
  // of one side agree on a view that is just them, and nobody else is running.
  std::string Run(double until = 1e9);

  bool IsRunning(int index) const { return processes_[index].state == State::kRunning; }
  bool IsFenced(int index) const { return processes_[index].state == State::kFenced; }
  bool HasNoQuorum(int index) const { return processes_[index].state == State::kNoQuorum; }
  const View& view(int index) const { return processes_[index].membership->view(); }
  int num_running() const;
  double now() const { return now_; }
  double Random(double below) { return std::uniform_real_distribution<double>(0, below)(random_); }
  int RandomInt(int below) { return static_cast<int>(random_() % static_cast<uint64_t>(below)); }

 private:
  enum class State { kRunning, kDead, kFenced, kNoQuorum };

  struct Memory : VoteStore {
    std::string bytes;
    Status Write(const std::string& written) override {
      bytes = written;
      return Status::Ok();
    }
  };

  struct Process {
    Member self;
    std::unique_ptr<Memory> votes = std::make_unique<Memory>();
    std::unique_ptr<Membership> membership;
    State state = State::kRunning;
    bool is_asleep = false, is_hung = false, is_alarmed = false, has_missed_tick = false;
    int side = 0, sends_left = -1;
    uint32_t begun_epoch = 0;
    std::vector<std::function<void()>> backlog;
    std::map<uint32_t, std::string> decisions;
    std::map<uint32_t, std::string> payloads;
    std::string join_payload;
  };

  void AddEvent(double time, std::function<void()> run) {
    events_.emplace(std::make_pair(time, ++order_), std::move(run));
  }
  Process& Find(MemberId id) { return processes_[id - 1]; }
  int IndexOf(const Process& process) const { return static_cast<int>(&process - processes_.data()); }
  void OnProcess(int index, std::function<void()> run);
  void Perform(int index, const Actions& actions);
  void Deliver(int from, const Action& action);
  void Fence(int by, int victim);
  void AskWitness(int index, const Action& action);
  void TellOfDeath(int victim, int observer, const std::string& proof);
  void TellUnreachable(int observer, int lost);
  void Alarm(Process& process, const Note& note);
  void BeginLater(int index);
  void Begin(int index);
  void TickForever(int index);
  void OnDecided(int index, const std::string& bytes);
  void CheckLeftOut(int index, const Decision& decision);
  void CheckPayloads(const Decision& decision);
  void CheckEnd();
  bool IsBusy() const;
  bool IsFair() const { return options_.max_delay < 0.5; }
  void Fail(const std::string& what);

  const WorldOptions options_;
  std::mt19937_64 random_;
  std::map<std::pair<double, uint64_t>, std::function<void()>> events_;
  uint64_t order_ = 0;
  double now_ = 0, last_event_ = 0;  // the last one that is known, but for ticks
  std::vector<Process> processes_;
  std::map<std::pair<int, int>, double> last_delivery_, lost_after_;
  std::map<uint32_t, std::string> witness_;  // by epoch
  int witness_side_ = -1;                    // -1: both sides reach it
  std::string failure_;
};

inline World::World(WorldOptions options) : options_(options), random_(options.seed) {
  AgreementOptions agreement;
  agreement.has_witness = options_.has_witness;
  agreement.rules = options_.rules;
  View first{1, {}};
  const int num_processes = options_.num_members + options_.num_joiners;
  processes_.resize(num_processes);
  for (int index = 0; index < num_processes; ++index) {
    Process& process = processes_[index];
    process.self.id = index + 1;
    process.self.pid = 100 + index;
    process.self.host = "host-" + std::to_string(index % options_.num_hosts);
    process.membership = std::make_unique<Membership>(process.self.id, agreement, *process.votes);
    if (index < options_.num_members) first.members.push_back(process.self);
  }
  for (int index = 0; index < num_processes; ++index) {
    if (index < options_.num_members && !processes_[index].membership->Open(first).ok())
      Fail("no first view");
    AddEvent(Random(1), [this, index] { TickForever(index); });
  }
}

inline void World::OnProcess(int index, std::function<void()> run) {
  Process& process = processes_[index];
  if (process.state != State::kRunning) return;
  if (process.is_asleep) {
    process.backlog.push_back(std::move(run));
    return;
  }
  run();
  BeginLater(index);
}

inline void World::Wake(int index) {
  Process& process = processes_[index];
  process.is_asleep = false;
  for (auto& run : std::exchange(process.backlog, {})) OnProcess(index, std::move(run));
}

inline void World::Perform(int index, const Actions& actions) {
  for (const Action& action : actions) {
    Process& process = processes_[index];
    if (process.state == State::kDead) return;
    if (action.kind == Action::Kind::kSend) Deliver(index, action);
    if (action.kind == Action::Kind::kFence) Fence(index, static_cast<int>(action.member) - 1);
    if (action.kind == Action::Kind::kWitness) AskWitness(index, action);
    if (action.kind == Action::Kind::kDecided) OnDecided(index, action.content);
    if (action.kind == Action::Kind::kFenced) process.state = State::kFenced;
    if (action.kind == Action::Kind::kNoQuorum) process.state = State::kNoQuorum;
    const bool has_stopped = process.state == State::kFenced || process.state == State::kNoQuorum;
    // It ends, with an exit code of its own; those around it see that as they see any death.
    if (has_stopped) At(now_ + Random(1), [this, index] { Kill(index); });
  }
}

inline void World::Deliver(int from, const Action& action) {
  const int to = static_cast<int>(action.member) - 1;
  if (processes_[from].sends_left == 0) return Kill(from);
  if (processes_[from].sends_left > 0) --processes_[from].sends_left;
  if (processes_[from].side != processes_[to].side) return;
  double& last = last_delivery_[{from, to}];
  last = std::max(last, now_ + Random(options_.max_delay));
  At(last, [this, from, to, content = action.content, sent = now_] {
    const auto lost = lost_after_.find({from, to});
    if (lost != lost_after_.end() && sent >= lost->second) return;
    if (processes_[from].side != processes_[to].side) return;
    OnProcess(to, [this, from, to, content] {
      Result<Actions> actions = processes_[to].membership->OnMessage(processes_[from].self.id, content);
      if (!actions.ok()) return Fail("a note was not understood: " + actions.status().message());
      Alarm(processes_[to], DecodeNote(content).value());
      Perform(to, actions.value());
    });
  });
}

// Like a revoked group: news of this epoch, not of one that is over.
inline void World::Alarm(Process& process, const Note& note) {
  const bool is_news =
      note.kind == NoteKind::kJoin || note.kind == NoteKind::kBeat || note.kind == NoteKind::kDeath;
  const bool is_present = process.membership->has_view() && note.epoch >= process.membership->view().epoch;
  process.is_alarmed = process.is_alarmed || (is_news && is_present);
}

inline void World::Kill(int index) {
  Process& victim = processes_[index];
  if (victim.state == State::kDead) return;
  victim.state = State::kDead;
  const std::string proof = options_.proofs_carry_votes ? victim.votes->bytes : Encode(Vote{});
  for (int other = 0; other < static_cast<int>(processes_.size()); ++other) {
    // A part of what it sent last may still have been in its own buffers.
    if (RandomInt(2) == 0) lost_after_[{index, other}] = now_ - Random(options_.max_delay);
    if (other == index || processes_[other].side != victim.side) continue;
    if (RandomInt(2) == 0) TellUnreachable(other, index);
    TellOfDeath(index, other, proof);
  }
}

inline void World::TellOfDeath(int victim, int observer, const std::string& proof) {
  const bool is_local = processes_[victim].self.host == processes_[observer].self.host;
  const auto elsewhere = options_.deaths_elsewhere;
  if (!is_local && elsewhere == WorldOptions::Remote::kNothing) return TellUnreachable(observer, victim);
  const bool is_readable = is_local || elsewhere == WorldOptions::Remote::kWithVote;
  At(now_ + Random(options_.max_delay), [this, victim, observer, left = is_readable ? proof : std::string()] {
    OnProcess(observer, [this, victim, observer, left] {
      processes_[observer].is_alarmed = true;
      Perform(observer,
              processes_[observer].membership->OnLoss(processes_[victim].self.id, Loss::kDead, left));
    });
  });
}

inline void World::TellUnreachable(int observer, int lost) {
  At(now_ + Random(options_.max_delay), [this, observer, lost] {
    OnProcess(observer, [this, observer, lost] {
      processes_[observer].is_alarmed = true;
      Perform(observer,
              processes_[observer].membership->OnLoss(processes_[lost].self.id, Loss::kUnreachable, ""));
    });
  });
}

inline void World::Cut(uint32_t side_bits) {
  const int num_processes = static_cast<int>(processes_.size());
  for (int index = 0; index < num_processes; ++index) processes_[index].side = side_bits >> index & 1;
  for (int a = 0; a < num_processes; ++a) {
    for (int b = 0; b < num_processes; ++b) {
      if (processes_[a].side != processes_[b].side) TellUnreachable(a, b);
    }
  }
}

inline void World::Fence(int by, int victim) {
  if (processes_[by].side != processes_[victim].side) return;
  At(now_ + Random(options_.max_delay), [this, by, victim] {
    if (processes_[by].side == processes_[victim].side) Kill(victim);
  });
}

inline void World::AskWitness(int index, const Action& action) {
  if (witness_side_ >= 0 && processes_[index].side != witness_side_) return;
  const double there = Random(options_.max_delay), back = Random(options_.max_delay);
  At(now_ + there, [this, index, action, back] {
    std::string& has = witness_[action.epoch];
    const bool is_swapped = has == action.expected;
    if (is_swapped) has = action.content;
    At(now_ + back, [this, index, epoch = action.epoch, is_swapped, actual = has] {
      OnProcess(index, [this, index, epoch, is_swapped, actual] {
        Perform(index, processes_[index].membership->OnWitness(epoch, is_swapped, actual));
      });
    });
  });
}

inline void World::Grow() {
  for (int index = 0; index < options_.num_members; ++index) {
    OnProcess(index, [this, index] {
      Process& process = processes_[index];
      process.is_alarmed = true;
      for (size_t other = options_.num_members; other < processes_.size(); ++other) {
        const Candidate candidate{processes_[other].self, "joins " + std::to_string(other)};
        processes_[other].join_payload = candidate.payload;
        Perform(index, process.membership->AddCandidate(candidate));
      }
    });
  }
}

// A revoked group makes the training thread of every member come to the agreement, sooner or later.
inline void World::BeginLater(int index) {
  Process& process = processes_[index];
  if (!process.is_alarmed || process.is_hung || !process.membership->has_view()) return;
  if (process.begun_epoch >= process.membership->view().epoch) return;
  process.begun_epoch = process.membership->view().epoch;
  At(now_ + Random(std::min(0.5, options_.max_delay)),
     [this, index] { OnProcess(index, [this, index] { Begin(index); }); });
}

inline void World::Begin(int index) {
  Process& process = processes_[index];
  const uint32_t epoch = process.membership->view().epoch;
  if (process.begun_epoch != epoch) return;
  process.payloads[epoch] = "of " + std::to_string(index) + " at " + std::to_string(RandomInt(1000));
  Perform(index, process.membership->Begin(process.payloads[epoch]));
}

// A process that was stopped gets one tick when it goes on, however many it has missed.
inline void World::TickForever(int index) {
  Process& process = processes_[index];
  if (process.state != State::kRunning) return;
  AddEvent(now_ + 1, [this, index] { TickForever(index); });
  if (process.is_asleep && std::exchange(process.has_missed_tick, true)) return;
  OnProcess(index, [this, index] {
    processes_[index].has_missed_tick = false;
    Perform(index, processes_[index].membership->OnTick());
  });
}

}  // namespace elastates

#include "view_world_checks.h"

#endif  // ELASTATES_TESTS_CSRC_VIEW_WORLD_H_
