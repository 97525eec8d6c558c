#include "comm/collectives/two_levels.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "comm/shared/local_collectives.h"

namespace elastates {
namespace {

// An operation among some of the members, which are numbered by their places in `ranks`.
class PartOfOperation : public Operation {
 public:
  PartOfOperation(Operation& whole, const std::vector<int>& ranks, LocalCollectives* local)
      : whole_(whole), ranks_(ranks), local_(local) {
    view_.epoch = whole.view().epoch;
    for (int rank : ranks) view_.members.push_back(whole.view().members[rank]);
    rank_ = static_cast<int>(std::find(ranks.begin(), ranks.end(), whole.rank()) - ranks.begin());
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  const View& view() const override { return view_; }
  uint64_t sequence() const override { return whole_.sequence(); }
  void Send(int to, uint32_t tag, const void* data, size_t size_bytes) override {
    whole_.Send(ranks_[to], tag, data, size_bytes);
  }
  void Receive(int from, uint32_t tag, void* data, size_t size_bytes) override {
    whole_.Receive(ranks_[from], tag, data, size_bytes);
  }
  Status Wait() override { return whole_.Wait(); }
  Status WaitFirst(size_t count) override { return whole_.WaitFirst(count); }
  Status Check() override { return whole_.Check(); }
  void WakeOnStop(std::function<void()> wake) override { whole_.WakeOnStop(std::move(wake)); }
  Status CheckPeer(int rank) override { return whole_.CheckPeer(ranks_[rank]); }
  LocalCollectives* local() override { return local_; }
  char* Scratch(size_t size_bytes) override { return whole_.Scratch(size_bytes); }

 private:
  Operation& whole_;
  const std::vector<int>& ranks_;
  LocalCollectives* const local_;
  View view_;
  int rank_ = 0;
};

std::vector<ElementSpan> Cut(const ElementSpan& piece, size_t num_chunks, size_t element_bytes) {
  const size_t length = (piece.count + num_chunks - 1) / num_chunks;
  std::vector<ElementSpan> chunks;
  for (size_t i = 0; i < num_chunks; ++i) {
    const size_t begin = std::min(piece.count, i * length);
    chunks.push_back({piece.data + begin * element_bytes, std::min(length, piece.count - begin)});
  }
  return chunks;
}

}  // namespace

std::optional<TwoLevels> PlanTwoLevels(const View& view, int rank) {
  std::map<std::string, std::vector<int>> hosts;
  for (size_t i = 0; i < view.members.size(); ++i) hosts[view.members[i].host].push_back(static_cast<int>(i));
  TwoLevels levels;
  levels.here = hosts[view.members[rank].host];
  if (hosts.size() < 2 || levels.here.size() < 2 || levels.here.size() > kMaxLocalMembers)
    return std::nullopt;
  const size_t place = std::find(levels.here.begin(), levels.here.end(), rank) - levels.here.begin();
  for (const auto& [name, ranks] : hosts) {
    if (ranks.size() != levels.here.size()) return std::nullopt;
    levels.across.push_back(ranks[place]);
  }
  return levels;
}

Status TwoLevelAllReduce(Operation& op, const TwoLevels& levels, const Collective& collective) {
  PartOfOperation here(op, levels.here, op.local()), across(op, levels.across, nullptr);
  const size_t element_bytes = SizeOf(collective.type);
  const std::vector<ElementSpan> chunks = Cut(collective.out[0], levels.here.size(), element_bytes);
  const ElementSpan& own = chunks[here.rank()];

  Collective step = collective;
  step.kind = CollectiveKind::kReduceScatter;
  if (step.reduction.kind == ReduceKind::kAvg) step.reduction.kind = ReduceKind::kSum;  // divided once, below
  step.in = Cut(collective.in[0], levels.here.size(), element_bytes);
  step.out = {own};
  Status status = RunCollective(here, step);

  if (step.reduction.kind == ReduceKind::kPremulSum) step.reduction.kind = ReduceKind::kSum;  // is multiplied
  step.kind = CollectiveKind::kAllReduce;
  step.in = step.out = {own};
  if (status.ok()) status = RunCollective(across, step);
  if (!status.ok()) return status;
  Conclude(collective.type, collective.reduction, own.data, own.count, op.size());

  step.kind = CollectiveKind::kAllGather;
  step.out = chunks;
  return RunCollective(here, step);
}

}  // namespace elastates
