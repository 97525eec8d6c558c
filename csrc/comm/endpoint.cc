#include "comm/endpoint.h"

namespace elastates {

Result<std::shared_ptr<Endpoint>> Endpoint::Start(LinkPoolOptions options) {
  Result<std::unique_ptr<LinkPool>> links = LinkPool::Start(std::move(options));
  if (!links.ok()) return links.status();
  return std::shared_ptr<Endpoint>(new Endpoint(std::move(links).value()));
}

Result<std::shared_ptr<QueuedGroup>> Endpoint::MakeGroup(const std::string& name, View view,
                                                         double timeout_s) {
  const Status connected = Connect(view, timeout_s);
  if (!connected.ok()) return connected.WithContext("connecting group " + name);
  return hub_.MakeGroup(name, std::move(view));
}

Status Endpoint::Install(QueuedGroup& group, View view, double timeout_s) {
  const Status connected = Connect(view, timeout_s);
  if (!connected.ok()) return connected.WithContext("connecting group " + group.name());
  return hub_.Install(group, std::move(view));
}

Status Endpoint::Connect(const View& view, double timeout_s) {
  std::vector<Member> peers;
  for (const Member& member : view.members) {
    if (!(member == self())) peers.push_back(member);
  }
  return peers.empty() ? Status::Ok() : links_->Connect(peers, timeout_s);
}

void Endpoint::Close() {
  std::call_once(closed_, [this] {
    hub_.Leave();
    hub_.CloseAll();
    links_.reset();
  });
}

Result<std::vector<Member>> DecodeMembers(const std::vector<std::string>& handles) {
  std::vector<Member> members;
  for (size_t rank = 0; rank < handles.size(); ++rank) {
    Result<Member> member = DecodeMember(handles[rank]);
    if (!member.ok()) return member.status().WithContext("member " + std::to_string(rank));
    members.push_back(std::move(member).value());
  }
  return members;
}

}  // namespace elastates
