#include <algorithm>
#include <string>

#include "comm/collectives/messages.h"

namespace elastates {
namespace {

// Long enough that a message's own cost vanishes, short enough that a neighbour starts early.
constexpr size_t kBlockBytes = 256 << 10;
// Reductions are done in segments, which bounds the scratch memory that a group keeps.
constexpr size_t kSegmentBytes = 32 << 20;

// Of a chunk, for tags have no room for more: those of 16 GiB and above have longer blocks.
constexpr size_t kMostBlocks = size_t{1} << 16;

constexpr uint32_t kGatherTags = 1u << 31;  // the second half of an all-reduce

// This member's place in the ring. Chunks have the number of the place where their sum is completed.
struct Ring {
  std::vector<int> order;  // rank by place
  int place = 0;

  explicit Ring(const Operation& op) : order(RingOrder(op.view())) {
    while (order[place] != op.rank()) ++place;
  }
  int size() const { return static_cast<int>(order.size()); }
  int Wrap(int number) const { return (number % size() + size()) % size(); }
  int next() const { return order[Wrap(place + 1)]; }
  int previous() const { return order[Wrap(place - 1)]; }
};

struct Block {
  size_t begin = 0, count = 0;  // elements of its chunk
};

std::vector<Block> BlocksOf(size_t count, size_t element_bytes) {
  const size_t longest = std::max(kBlockBytes / element_bytes, (count + kMostBlocks - 1) / kMostBlocks);
  std::vector<Block> blocks;
  for (size_t begin = 0; begin < count; begin += longest) {
    blocks.push_back({begin, std::min(longest, count - begin)});
  }
  return blocks;
}

// Messages of a ring in the order in which they come; both ends number them alike.
uint32_t TagOf(int step, size_t block) { return static_cast<uint32_t>(step) << 16 | block; }

ElementSpan Part(const ElementSpan& piece, const Block& block, size_t element_bytes) {
  return {piece.data + block.begin * element_bytes, block.count};
}

// n - 1 steps: what comes in is combined with the own part in scratch and handed on, so that no input is
// written to; at the last step the sum of chunk `place` is complete and goes to `target`.
class ScatterHalf {
 public:
  ScatterHalf(Operation& op, const Ring& ring, const Collective& collective, std::vector<ElementSpan> chunks,
              ElementSpan target)
      : op_(op),
        ring_(ring),
        type_(collective.type),
        reduction_(collective.reduction),
        chunks_(std::move(chunks)),
        target_(target),
        element_bytes_(SizeOf(type_)) {}

  Status Run() {
    PostReceives();
    SendFirst();
    Status status;
    size_t num_received = 0;
    for (int step = 0; step < ring_.size() - 1 && status.ok(); ++step) {
      const std::vector<Block> blocks = BlocksOf(ReceivedAt(step).count, element_bytes_);
      for (size_t b = 0; b < blocks.size() && status.ok(); ++b) {
        status = op_.WaitFirst(++num_received);
        if (status.ok()) CombineOne(step, b, blocks[b]);
      }
    }
    return status.ok() ? op_.Wait() : status;
  }

 private:
  bool multiplies() const { return reduction_.kind == ReduceKind::kPremulSum; }
  int ChunkAt(int step) const { return ring_.Wrap(ring_.place - step - 2); }
  const ElementSpan& ReceivedAt(int step) const { return chunks_[ChunkAt(step)]; }

  // All of them at once, each into a place of its own.
  void PostReceives() {
    const ElementSpan& first = chunks_[ring_.Wrap(ring_.place - 1)];
    size_t total_bytes = multiplies() ? first.count * element_bytes_ : 0;
    offsets_bytes_.clear();
    for (int step = 0; step < ring_.size() - 1; ++step) {
      offsets_bytes_.push_back(total_bytes);
      total_bytes += ReceivedAt(step).count * element_bytes_;
    }
    scratch_ = op_.Scratch(total_bytes + (multiplies() ? kBlockBytes : 0));
    own_ = scratch_ + total_bytes;
    for (int step = 0; step < ring_.size() - 1; ++step) {
      const std::vector<Block> blocks = BlocksOf(ReceivedAt(step).count, element_bytes_);
      for (size_t b = 0; b < blocks.size(); ++b) {
        op_.Receive(ring_.previous(), TagOf(step, b), Incoming(step, blocks[b]),
                    blocks[b].count * element_bytes_);
      }
    }
  }

  char* Incoming(int step, const Block& block) const {
    return scratch_ + offsets_bytes_[step] + block.begin * element_bytes_;
  }

  // The own part of the chunk that goes all the way round.
  void SendFirst() {
    const ElementSpan& first = chunks_[ring_.Wrap(ring_.place - 1)];
    char* data = first.data;
    if (multiplies()) {
      data = scratch_;
      Prepare(type_, reduction_, data, first.data, first.count);
    }
    const std::vector<Block> blocks = BlocksOf(first.count, element_bytes_);
    for (size_t b = 0; b < blocks.size(); ++b) {
      op_.Send(ring_.next(), TagOf(0, b), data + blocks[b].begin * element_bytes_,
               blocks[b].count * element_bytes_);
    }
  }

  void CombineOne(int step, size_t b, const Block& block) {
    char* const incoming = Incoming(step, block);
    const ElementSpan part = Part(ReceivedAt(step), block, element_bytes_);
    const char* own = part.data;
    if (multiplies()) {
      Prepare(type_, reduction_, own_, part.data, part.count);
      own = own_;
    }
    const bool is_last = step == ring_.size() - 2;
    char* const target = is_last ? Part(target_, block, element_bytes_).data : incoming;
    Combine(type_, reduction_.kind, target, incoming, own, block.count);
    if (is_last) {
      Conclude(type_, reduction_, target, block.count, ring_.size());
    } else {
      op_.Send(ring_.next(), TagOf(step + 1, b), target, block.count * element_bytes_);
    }
  }

  Operation& op_;
  const Ring& ring_;
  const DataType type_;
  const Reduction reduction_;
  const std::vector<ElementSpan> chunks_;  // by place
  const ElementSpan target_;
  const size_t element_bytes_;
  std::vector<size_t> offsets_bytes_;  // in scratch, by step
  char* scratch_ = nullptr;
  char* own_ = nullptr;  // one block, multiplied
};

// n - 1 steps: chunk `place` goes round; each block is handed on as it comes in.
Status GatherHalf(Operation& op, const Ring& ring, const std::vector<ElementSpan>& chunks,
                  size_t element_bytes, uint32_t tags) {
  const auto chunk_at = [&](int step) { return chunks[ring.Wrap(ring.place - step - 1)]; };
  const auto send = [&](int step, size_t b, const ElementSpan& part) {
    op.Send(ring.next(), tags | TagOf(step, b), part.data, part.count * element_bytes);
  };
  for (int step = 0; step < ring.size() - 1; ++step) {
    const std::vector<Block> blocks = BlocksOf(chunk_at(step).count, element_bytes);
    for (size_t b = 0; b < blocks.size(); ++b) {
      const ElementSpan part = Part(chunk_at(step), blocks[b], element_bytes);
      op.Receive(ring.previous(), tags | TagOf(step, b), part.data, part.count * element_bytes);
    }
  }
  const ElementSpan& own = chunks[ring.place];
  const std::vector<Block> own_blocks = BlocksOf(own.count, element_bytes);
  for (size_t b = 0; b < own_blocks.size(); ++b) send(0, b, Part(own, own_blocks[b], element_bytes));

  size_t num_received = 0;
  for (int step = 0; step < ring.size() - 2; ++step) {
    const std::vector<Block> blocks = BlocksOf(chunk_at(step).count, element_bytes);
    for (size_t b = 0; b < blocks.size(); ++b) {
      const Status status = op.WaitFirst(++num_received);
      if (!status.ok()) return status;
      send(step + 1, b, Part(chunk_at(step), blocks[b], element_bytes));
    }
  }
  return op.Wait();
}

// What a piece has from `begin` on, at most `longest`; maybe nothing.
ElementSpan Within(const ElementSpan& piece, size_t begin, size_t longest, size_t element_bytes) {
  begin = std::min(begin, piece.count);
  return Part(piece, {begin, std::min(longest, piece.count - begin)}, element_bytes);
}

// Equal but for the last ones.
std::vector<ElementSpan> Chunks(const ElementSpan& piece, int num_chunks, size_t element_bytes) {
  const size_t longest = (piece.count + num_chunks - 1) / num_chunks;
  std::vector<ElementSpan> chunks;
  for (int i = 0; i < num_chunks; ++i) chunks.push_back(Within(piece, i * longest, longest, element_bytes));
  return chunks;
}

std::vector<ElementSpan> ByPlace(const Ring& ring, const std::vector<ElementSpan>& by_rank) {
  std::vector<ElementSpan> by_place;
  for (int rank : ring.order) by_place.push_back(by_rank[rank]);
  return by_place;
}

}  // namespace

std::vector<int> RingOrder(const View& view) {
  std::vector<int> order;
  std::vector<std::string> hosts;  // in the order in which ranks name them
  for (const Member& member : view.members) {
    if (std::find(hosts.begin(), hosts.end(), member.host) == hosts.end()) hosts.push_back(member.host);
  }
  for (const std::string& host : hosts) {
    for (size_t rank = 0; rank < view.members.size(); ++rank) {
      if (view.members[rank].host == host) order.push_back(static_cast<int>(rank));
    }
  }
  return order;
}

Status RingAllReduce(Operation& op, const Collective& collective) {
  const Ring ring(op);
  const size_t element_bytes = SizeOf(collective.type);
  const size_t longest = kSegmentBytes / element_bytes;
  for (size_t begin = 0; begin < collective.in[0].count; begin += longest) {
    const auto chunks = [&](const ElementSpan& piece) {
      return Chunks(Within(piece, begin, longest, element_bytes), ring.size(), element_bytes);
    };
    const std::vector<ElementSpan> in = chunks(collective.in[0]), out = chunks(collective.out[0]);
    Status status = ScatterHalf(op, ring, collective, in, out[ring.place]).Run();
    if (status.ok()) status = GatherHalf(op, ring, out, element_bytes, kGatherTags);
    if (!status.ok()) return status;
  }
  return Status::Ok();
}

Status RingReduceScatter(Operation& op, const Collective& collective) {
  const Ring ring(op);
  const size_t element_bytes = SizeOf(collective.type);
  const size_t longest = kSegmentBytes / element_bytes / ring.size();
  size_t end = 0;
  for (const ElementSpan& piece : collective.in) end = std::max(end, piece.count);
  for (size_t begin = 0; begin < end; begin += longest) {
    std::vector<ElementSpan> chunks = ByPlace(ring, collective.in);
    for (ElementSpan& chunk : chunks) chunk = Within(chunk, begin, longest, element_bytes);
    const ElementSpan target = Within(collective.out[0], begin, longest, element_bytes);
    const Status status = ScatterHalf(op, ring, collective, chunks, target).Run();
    if (!status.ok()) return status;
  }
  return Status::Ok();
}

Status RingAllGather(Operation& op, const Collective& collective) {
  const Ring ring(op);
  CopyPiece(collective.in[0], collective.out[op.rank()], SizeOf(collective.type));
  return GatherHalf(op, ring, ByPlace(ring, collective.out), SizeOf(collective.type), 0);
}

Status ChainBroadcast(Operation& op, const Collective& collective) {
  const Ring ring(op);
  const size_t element_bytes = SizeOf(collective.type);
  const ElementSpan& piece = collective.out[0];
  const std::vector<Block> blocks = BlocksOf(piece.count, element_bytes);
  const bool is_first = op.rank() == collective.root;
  const bool is_last = ring.next() == collective.root;
  for (size_t b = 0; b < blocks.size() && !is_first; ++b) {
    const ElementSpan part = Part(piece, blocks[b], element_bytes);
    op.Receive(ring.previous(), static_cast<uint32_t>(b), part.data, part.count * element_bytes);
  }
  for (size_t b = 0; b < blocks.size() && !is_last; ++b) {
    const Status status = is_first ? Status::Ok() : op.WaitFirst(b + 1);
    if (!status.ok()) return status;
    const ElementSpan part = Part(piece, blocks[b], element_bytes);
    op.Send(ring.next(), static_cast<uint32_t>(b), part.data, part.count * element_bytes);
  }
  return op.Wait();
}

}  // namespace elastates
