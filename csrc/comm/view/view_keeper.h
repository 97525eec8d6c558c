// ViewKeeper: this process's part in agreeing on the views of one group, over the links of its endpoint.
//
// Joins the Membership (a state machine) with the world: notes travel as control messages, losses come from
// the hub, ticks from the messenger's clock, votes go to the memory that neighbours read. Everything runs on
// the messenger's thread, never on Python's: a process whose training thread hangs still votes, and is
// fenced.
//
// Requests, what it cannot do itself, wait to be served by somebody else: NextRequest(). Thread-safe. To be
// closed before its endpoint.
#ifndef ELASTATES_COMM_VIEW_VIEW_KEEPER_H_
#define ELASTATES_COMM_VIEW_VIEW_KEEPER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "comm/endpoint.h"
#include "comm/view/decision.h"
#include "comm/view/membership.h"

namespace elastates {

// Exit statuses (elaswave/exits.py).
constexpr int kExitFenced = 86;
constexpr int kExitNoQuorum = 87;

struct ViewKeeperOptions {
  std::string group;              // its name, equal on all members
  double failure_timeout_s = 30;  // whoever is silent for so long while others wait is fenced
  bool has_witness = false;       // somebody serves kWitness requests
  // A process that is out ends at once, from whatever it does: nothing that it writes may count any more.
  // With false Agree() tells instead.
  bool exits_when_out = true;
};

// An agreed view, and the decision that made it.
struct AgreedView {
  View view;
  Decision decision;
};

struct ViewRequest {
  enum class Kind {
    kFence,    // have `member` killed, by the agent of its host
    kWitness,  // see Action::Kind::kWitness; AnswerWitness() with the same epoch
  };
  Kind kind = Kind::kFence;
  MemberId member = 0;
  uint32_t epoch = 0;
  std::string content;
  std::string expected;
};

class ViewKeeper {
 public:
  enum class Out { kIn, kFenced, kNoQuorum };

  ViewKeeper(std::shared_ptr<Endpoint> endpoint, ViewKeeperOptions options);
  ~ViewKeeper() { Close(); }
  ViewKeeper(const ViewKeeper&) = delete;
  ViewKeeper& operator=(const ViewKeeper&) = delete;

  // The group's first view. Instead of it, one who joins awaits a welcome.
  Status Open(const View& view);
  Result<AgreedView> AwaitWelcome(double timeout_s);

  // Agrees with the other members on the next view; this one brings `payload` along. Returns when it is
  // decided, to be installed; kDeadlineExceeded names who is missing, and Agree() may be called again.
  // kRevoked if this process is out (see out()). One thread at a time.
  Result<AgreedView> Agree(const std::string& payload, double timeout_s);

  // Somebody wants to join: connects to it and, when there is a link, names it in agreements. Returns at
  // once.
  void AddCandidate(const Member& member, const std::string& payload);

  // How many want to join and have links to here.
  size_t num_candidates() const;

  // The next thing to be done for it; nothing after Close().
  std::optional<ViewRequest> NextRequest();
  void AnswerWitness(uint32_t epoch, bool is_swapped, const std::string& actual);

  Out out() const;
  // Ends NextRequest() and Agree(). Idempotent.
  void Close();

 private:
  class Core;
  const std::shared_ptr<Core> core_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_VIEW_VIEW_KEEPER_H_
