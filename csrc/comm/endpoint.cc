#include "comm/endpoint.h"

#include <unistd.h>

#include <cstdlib>

#include "comm/links/random.h"

namespace elastates {
namespace {

constexpr char kNoSharedMemory[] = "ELASWAVE_NO_SHARED_MEMORY";

bool IsSet(const char* variable) {
  const char* text = std::getenv(variable);
  return text != nullptr && *text != '\0' && std::string(text) != "0";
}

Result<std::unique_ptr<SharedSegment>> MakeSegment(LinkPoolOptions* options) {
  if (IsSet(kNoSharedMemory)) return std::unique_ptr<SharedSegment>();
  if (options->id == 0) options->id = RandomId();
  Result<std::unique_ptr<SharedSegment>> segment = SharedSegment::Create(options->id);
  if (!segment.ok()) {
    return segment.status().WithContext(std::string("no shared memory (") + kNoSharedMemory +
                                        "=1 on all ranks of the job does without)");
  }
  options->segment_fd = segment.value()->fd();
  return segment;
}

std::unique_ptr<Neighbours> MakeNeighbours(SharedSegment* segment, LinkPool* links) {
  if (segment == nullptr) return nullptr;
  return std::make_unique<Neighbours>(segment, [links](MemberId peer) { return links->PeerSegmentFd(peer); });
}

}  // namespace

Endpoint::Endpoint(std::unique_ptr<SharedSegment> segment, std::unique_ptr<LinkPool> links)
    : segment_(std::move(segment)),
      links_(std::move(links)),
      self_(links_->self()),
      neighbours_(MakeNeighbours(segment_.get(), links_.get())),
      hub_(*links_, neighbours_.get()) {}

Result<std::shared_ptr<Endpoint>> Endpoint::Start(LinkPoolOptions options) {
  Result<std::unique_ptr<SharedSegment>> segment = MakeSegment(&options);
  if (!segment.ok()) return segment.status();
  Result<std::unique_ptr<LinkPool>> links = LinkPool::Start(std::move(options));
  if (!links.ok()) return links.status();
  return std::shared_ptr<Endpoint>(new Endpoint(std::move(segment).value(), std::move(links).value()));
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
  if (getpid() != self_.pid) return;
  std::call_once(closed_, [this] {
    hub_.Leave();
    hub_.CloseAll();
    links_->Close();
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
