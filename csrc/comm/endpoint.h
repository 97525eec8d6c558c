// Endpoint: this process in its job: its links, and the groups over them.
//
// One per process, shared by its groups and sub-groups. Thread-safe.
#ifndef ELASTATES_COMM_ENDPOINT_H_
#define ELASTATES_COMM_ENDPOINT_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/hub.h"
#include "comm/link_pool.h"
#include "comm/shared/neighbours.h"
#include "comm/shared/segment.h"

namespace elastates {

class Endpoint {
 public:
  // Makes the memory that this process shares with others of its host too, unless ELASWAVE_NO_SHARED_MEMORY=1
  // is set (on all of them): then everything goes through sockets.
  static Result<std::shared_ptr<Endpoint>> Start(LinkPoolOptions options);
  ~Endpoint() { Close(); }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  LinkPool& links() { return *links_; }
  Hub& hub() { return hub_; }
  const Hub& hub() const { return hub_; }
  const Member& self() const { return self_; }
  Neighbours* neighbours() { return neighbours_.get(); }  // null without shared memory

  // A group of these members, in the order of their ranks; connects to those it is not connected to.
  Result<std::shared_ptr<QueuedGroup>> MakeGroup(const std::string& name, View view, double timeout_s);
  // A newer view of a group, connecting first to members that are new.
  Status Install(QueuedGroup& group, View view, double timeout_s);

  // Says farewell, ends all groups and all links; what threads that know nothing of it still ask for fails or
  // does nothing. Idempotent; not on a thread of its own. In a forked child it does nothing.
  void Close();

 private:
  Endpoint(std::unique_ptr<SharedSegment> segment, std::unique_ptr<LinkPool> links);
  Status Connect(const View& view, double timeout_s);

  const std::unique_ptr<SharedSegment> segment_;
  const std::unique_ptr<LinkPool> links_;
  const Member self_;
  const std::unique_ptr<Neighbours> neighbours_;
  Hub hub_;
  std::once_flag closed_;
};

// The members that the handles stand for; the error says which is none.
Result<std::vector<Member>> DecodeMembers(const std::vector<std::string>& handles);

}  // namespace elastates

#endif  // ELASTATES_COMM_ENDPOINT_H_
