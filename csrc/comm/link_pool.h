// LinkPool: the Messenger between real processes. One thread serves every link of a process: unix sockets to
// members of the same host, TCP to others, made in pairs and kept until one side is lost or the pool dies.
//
// Both ends of every socket prove that they know the job's secret before anything else is read. Members of
// the same host also hand each other one descriptor (the segment), and are watched through a pidfd: their
// death is known in milliseconds. See csrc/comm/links/ for the parts.
//
// Thread safety: everything may be called from any thread, but what waits (Connect, Cancel, the destructor)
// not from the pool's own, on which every callback runs.
#ifndef ELASTATES_COMM_LINK_POOL_H_
#define ELASTATES_COMM_LINK_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/messenger.h"

namespace elastates {

struct LinkPoolOptions {
  std::string job;     // 1 to 64 bytes; members of another job are refused
  std::string secret;  // of the job, at least 16 bytes, known to its members alone
  // Numeric addresses to listen on; "0.0.0.0" and "::" stand for all of the machine's, which are then named
  // in the member. Empty: only members of this host can reach it.
  std::vector<std::string> bind = {"127.0.0.1"};
  // A link whose other end acknowledges nothing for so long is broken.
  double failure_timeout_s = 30;
  double handshake_timeout_s = 10;  // a connection that has not proven who it is by then is closed
  int num_bulk_sockets = 2;  // TCP sockets per peer that share large messages; small ones have their own
  int segment_fd = -1;       // handed to every peer of the same host; borrowed; -1: none
  MemberId id = 0;           // 0: drawn
  std::string host;          // empty: ThisHost(); tests set it to be a stranger on their own machine
};

class LinkPool : public Messenger {
 public:
  // Listens and starts the thread. Nobody is accepted before SetObserver() or Connect(): they wait.
  static Result<std::unique_ptr<LinkPool>> Start(LinkPoolOptions options);

  // Closes. In a forked child, which has no part in the links, it does nothing.
  ~LinkPool() override = default;

  // Completes what is posted with kCancelled, ends the thread and closes all; peers see this member as lost.
  // What is asked for afterwards fails with kCancelled or does nothing. Idempotent; in a forked child
  // nothing.
  virtual void Close() = 0;

  // Until there is a link to every peer; those that are there already cost nothing. Both sides call it for
  // each other at about the same time, though one is enough where it can reach the other. Peers that were
  // lost stay lost. kPeerLost or kDeadlineExceeded names everyone there is no link to, and why.
  virtual Status Connect(const std::vector<Member>& peers, double timeout_s) = 0;
  // The same without waiting; `done` is called once, on the pool's thread.
  virtual void ConnectLater(std::vector<Member> peers, double timeout_s,
                            std::function<void(Status)> done) = 0;

  // The segment of a peer of this host; -1 if it has none. Stays open when the peer is gone, until
  // Forget() or the pool's end: what it wrote there can still be read.
  virtual int PeerSegmentFd(MemberId peer) const = 0;

  // True where ids could share memory with us and signal us: same host, over a unix socket.
  virtual bool IsLocal(MemberId peer) const = 0;

  // Somebody has proven that `peer` ended: as if the pool had seen it itself. `proof` goes to on_loss.
  // Nothing happens if its death is known. A peer that there never was a link to is remembered as dead.
  virtual void ReportDead(MemberId peer, const std::string& why, const std::string& proof) = 0;

  // SIGKILL to a peer of this host, through its pidfd: never to a process that got its pid later. on_loss
  // with kDead follows. Ok if it has ended already; kInvalidArgument if it is not of this host or unknown.
  virtual Status Kill(MemberId peer) = 0;

  // Closes the segment of a lost peer. Else the segments of the 64 that died last are kept.
  virtual void Forget(MemberId peer) = 0;

  // The highest epoch this process knows, told in every handshake from now on; and what the peer has told.
  virtual void SetEpoch(uint32_t epoch) = 0;
  virtual uint32_t PeerEpoch(MemberId peer) const = 0;

  // How many connections were refused, and the reasons of the newest few: strangers, wrong secrets.
  struct Refusals {
    uint64_t count = 0;
    std::vector<std::string> newest;
  };
  virtual Refusals refusals() const = 0;
};

// Boot id, network and process namespaces, user: equal on processes that can share memory and signal each
// other.
std::string ThisHost();

}  // namespace elastates

#endif  // ELASTATES_COMM_LINK_POOL_H_
