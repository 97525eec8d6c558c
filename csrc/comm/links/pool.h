// Pool: LinkPool's implementation. pool.cc is its life and its messages, pool_linking.cc how links come
// about, pool_losses.cc how they end.
//
// Everything but `facts_` and `refusals_` belongs to the loop's thread; other threads post to it.
#ifndef ELASTATES_COMM_LINKS_POOL_H_
#define ELASTATES_COMM_LINKS_POOL_H_

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/thread.h"
#include "comm/link_pool.h"
#include "comm/links/event_loop.h"
#include "comm/links/handshake.h"
#include "comm/links/link.h"
#include "comm/links/listener.h"
#include "comm/links/mailbox.h"
#include "comm/links/process_watch.h"

namespace elastates {

class Pool : public LinkPool, private Handshake::Host, private Link::Host {
 public:
  explicit Pool(LinkPoolOptions options) : options_(std::move(options)) {}
  ~Pool() override;

  Status Open();  // listens, and starts the thread

  const Member& self() const override { return self_; }
  void Send(MemberId to, const MessageAddress& address, const void* data, size_t size_bytes,
            MessageDone done) override;
  void Receive(MemberId from, const MessageAddress& address, void* data, size_t size_bytes,
               MessageDone done) override;
  void Cancel(uint64_t group, uint32_t epoch, const Status& why) override;
  void SendControl(MemberId to, std::string content) override;
  void SetObserver(Observer observer) override;
  void RunLater(double delay_s, std::function<void()> run) override;

  void Close() override;
  Status Connect(const std::vector<Member>& peers, double timeout_s) override;
  void ConnectLater(std::vector<Member> peers, double timeout_s, std::function<void(Status)> done) override;
  int PeerSegmentFd(MemberId peer) const override;
  bool IsLocal(MemberId peer) const override;
  void ReportDead(MemberId peer, const std::string& why, const std::string& proof) override;
  Status Kill(MemberId peer) override;
  void Forget(MemberId peer) override;
  void SetEpoch(uint32_t epoch) override { epoch_.store(epoch); }
  uint32_t PeerEpoch(MemberId peer) const override;
  Refusals refusals() const override;

 private:
  struct Peer {
    Member member;
    bool is_known = false;  // `member` is more than an id
    std::unique_ptr<Link> link;
    std::unique_ptr<ProcessWatch> watch;
    bool is_lost = false;  // for good
    bool is_dead = false;  // proven
    Status loss;           // what its posts fail with

    // While there is no link yet.
    bool is_dialling = false;
    EventLoop::TimerId next_dial{};
    size_t num_dials = 0;
    int num_retries = 0;        // of further sockets
    uint64_t chosen_link = 0;   // the one that this side, having the smaller id, has decided for
    std::string last_failure;   // of a dial
    std::string final_failure;  // another attempt is pointless
  };
  // What other threads ask for.
  struct Facts {
    bool is_local = false;
    uint32_t epoch = 0;
    bool is_dead = false;
    OwnedFd segment, pidfd;
  };
  struct ConnectCall {
    uint64_t id = 0;
    std::vector<MemberId> peers;
    std::function<void(Status)> done;
    EventLoop::TimerId deadline;
  };

  // pool.cc
  Status ListenOnAll();
  Status ListenOnTcp();
  void Run();
  void Shutdown(const Status& why);
  void Abandon();
  void FlushLinks();
  Status CheckPost(MemberId peer, const MessageAddress& address);
  Link* LinkTo(MemberId peer);

  // pool_linking.cc
  void BeginAccepting();
  void OnAccepted(Socket socket, bool is_local);
  void StartConnect(std::vector<Member> peers, double timeout_s, std::function<void(Status)> done);
  void CheckConnects();
  void EndConnect(size_t index, bool is_late);
  Status Outcome(const ConnectCall& call, bool is_late) const;
  bool IsSettled(MemberId peer) const;
  bool IsWanted(MemberId peer) const;
  void StartDialling(Peer* peer);
  void DialTurn(MemberId peer);
  void DialAgainLater(Peer* peer, double delay_s);
  bool IsDialled(MemberId peer, const std::string& address) const;
  void DialNext(Peer* peer);
  void DialFurther(MemberId peer, size_t index);
  void StartDial(const Member& member, Handshake::Target target);
  void StopDialling(Peer* peer);
  void Keep(std::unique_ptr<Handshake> handshake);
  void Drop(Handshake* handshake);
  Refusal CheckFurther(const Handshake& handshake) const;
  Status MakeLink(Handshake* handshake, Peer* peer);
  Status WatchProcess(Handshake* handshake, Peer* peer, const Socket& socket, OwnedFd* pidfd);
  void NoteRefusal(const Handshake& handshake, const std::string& why);
  Peer* Find(MemberId id);
  const Peer* Find(MemberId id) const;
  Peer* FindOrAdd(const Member& member);

  const std::string& secret() const override { return options_.secret; }
  Greeting MakeGreeting() override;
  int segment_fd() const override { return options_.segment_fd; }
  Refusal CheckHello(const Handshake& handshake) override;
  Refusal Choose(const Handshake& handshake) override;
  void OnEstablished(Handshake* handshake) override;
  void OnFailed(Handshake* handshake, Refusal refusal, const std::string& why) override;

  // pool_losses.cc
  void OnControl(MemberId peer, const std::string& content) override;
  void OnPeerReady(MemberId peer) override;
  void OnLinkEnded(MemberId peer, const std::string& why) override;
  void OnProcessEnded(MemberId peer);
  void Lose(Peer* peer, Loss loss, const std::string& why, const std::string& proof);
  void Bury(Peer* peer);
  void ForgetNow(MemberId id);

  const LinkPoolOptions options_;
  Member self_;
  std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> has_ended_{false};

  EventLoop loop_;
  Mailbox mailbox_;
  Observer observer_;
  Status ended_why_;  // written before has_ended_
  bool is_accepting_ = false;
  std::vector<std::pair<Socket, bool>> listening_;  // not yet accepting; whether local
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::unordered_map<Handshake*, std::unique_ptr<Handshake>> handshakes_;
  std::deque<Handshake*> strangers_;  // accepted, and not yet proven to be members; the oldest first
  std::unordered_map<MemberId, Peer> peers_;
  std::unordered_set<MemberId> unflushed_;
  std::vector<ConnectCall> connects_;
  std::deque<MemberId> dead_;  // whose segments are kept, the oldest first
  uint64_t next_connect_ = 0;

  mutable std::mutex mutex_;
  std::unordered_map<MemberId, Facts> facts_;  // guarded by mutex_
  Refusals refusals_;                          // guarded by mutex_

  std::once_flag closed_;
  NamedThread thread_;  // last: it uses the others
};

// "member 0123456789abcdef (process 123 on node-7)"
std::string Describe(const Member& member);

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_POOL_H_
