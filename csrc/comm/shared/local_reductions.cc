#include <algorithm>
#include <cstring>
#include <vector>

#include "comm/shared/local_algorithms.h"

namespace elastates {
namespace {

constexpr size_t kLineBytes = 64;

// Elements [begin, begin + count) of something.
struct Range {
  size_t begin, count;
};

// The chunk that a rank sums, of a piece of `count` elements; begins at a line of the cache.
Range ChunkOf(size_t count, int rank, int size, size_t element_bytes) {
  const size_t line = kLineBytes / element_bytes;
  const size_t ranks = static_cast<size_t>(size), index = static_cast<size_t>(rank);
  const size_t length = ((count + ranks - 1) / ranks + line - 1) / line * line;
  const size_t begin = std::min(count, index * length);
  return {begin, std::min(length, count - begin)};
}

// The part of `count` elements that a round is about; empty for rounds past the end.
Range PieceOf(size_t count, uint64_t round, size_t count_per_round) {
  const size_t begin = std::min<size_t>(count, round * count_per_round);
  return {begin, std::min(count_per_round, count - begin)};
}

// Sums inputs in the order of ranks.
class Summer {
 public:
  explicit Summer(Exchange& exchange)
      : exchange_(exchange),
        type_(exchange.collective().type),
        reduction_(exchange.collective().reduction),
        sources_(exchange.size()) {}

  // A member's own input is taken where it lies, unless it must be scaled first.
  bool shows_own() const { return reduction_.kind == ReduceKind::kPremulSum; }

  void Show(char* window, const char* input, size_t count) const {
    Prepare(type_, reduction_, window, input, count);
  }

  // `count` elements that everybody shows from `begin` on; ours lie at `own`.
  void Sum(void* target, const char* own, size_t begin, size_t count) {
    for (int rank = 0; rank < exchange_.size(); ++rank) {
      const bool is_own = rank == exchange_.rank() && !shows_own();
      sources_[rank] = is_own ? own : exchange_.window_of(rank, begin);
    }
    CombineAll(type_, reduction_.kind, target, sources_.data(), exchange_.size(), count);
    Conclude(type_, reduction_, target, count, exchange_.size());
  }

 private:
  Exchange& exchange_;
  const DataType type_;
  const Reduction reduction_;
  std::vector<const void*> sources_;
};

// A reduction cut into pieces, pieces into chunks. In round k member r sums its chunk of piece k into its
// next window, and everybody who wants them collects the sums of piece k - 1.
class CutReduction {
 public:
  explicit CutReduction(Exchange& exchange)
      : exchange_(exchange),
        summer_(exchange),
        input_(exchange.collective().in[0]),
        element_bytes_(exchange.element_bytes()),
        piece_count_(exchange.common_count()) {}

  Status Run() {
    const uint64_t num_pieces = (input_.count + piece_count_ - 1) / piece_count_;
    return exchange_.Run(
        num_pieces + 1, [this](uint64_t round) { Show(round); },
        [this](uint64_t round) {
          SumChunk(round);
          if (round > 0 && !exchange_.collective().out.empty()) Collect(round - 1);
          return Status::Ok();
        });
  }

 private:
  const char* InputAt(size_t element) const { return input_.data + element * element_bytes_; }

  // The whole piece, less our own chunk, which nobody else reads.
  void Show(uint64_t round) const {
    const Range piece = PieceOf(input_.count, round, piece_count_);
    const Range own = ChunkOf(piece.count, exchange_.rank(), exchange_.size(), element_bytes_);
    const size_t skip_begin = summer_.shows_own() ? piece.count : own.begin;
    const size_t skip_end = summer_.shows_own() ? piece.count : own.begin + own.count;
    summer_.Show(exchange_.window(), InputAt(piece.begin), skip_begin);
    summer_.Show(exchange_.window(skip_end), InputAt(piece.begin + skip_end), piece.count - skip_end);
  }

  void SumChunk(uint64_t round) {
    const Range piece = PieceOf(input_.count, round, piece_count_);
    const Range chunk = ChunkOf(piece.count, exchange_.rank(), exchange_.size(), element_bytes_);
    if (chunk.count == 0) return;
    summer_.Sum(exchange_.window(piece_count_), InputAt(piece.begin + chunk.begin), chunk.begin, chunk.count);
  }

  void Collect(uint64_t piece_index) const {
    const Range piece = PieceOf(input_.count, piece_index, piece_count_);
    char* target = exchange_.collective().out[0].data + piece.begin * element_bytes_;
    for (int step = 0; step < exchange_.size(); ++step) {
      const int from = (exchange_.rank() + step) % exchange_.size();
      const Range chunk = ChunkOf(piece.count, from, exchange_.size(), element_bytes_);
      exchange_.CopyOut(target + chunk.begin * element_bytes_, exchange_.window_of(from, piece_count_),
                        chunk.count * element_bytes_);
    }
  }

  Exchange& exchange_;
  Summer summer_;
  const ElementSpan input_;
  const size_t element_bytes_;
  const size_t piece_count_;
};

}  // namespace

Status FlatAllReduce(Exchange& exchange) {
  Summer summer(exchange);
  const ElementSpan &in = exchange.collective().in[0], &out = exchange.collective().out[0];
  return exchange.Run(
      1, [&](uint64_t) { summer.Show(exchange.window(), in.data, in.count); },
      [&](uint64_t) {
        summer.Sum(out.data, in.data, 0, in.count);
        return Status::Ok();
      });
}

Status CutReduce(Exchange& exchange) { return CutReduction(exchange).Run(); }

Status LocalReduceScatter(Exchange& exchange) {
  Summer summer(exchange);
  const std::vector<ElementSpan>& in = exchange.collective().in;
  const ElementSpan& out = exchange.collective().out[0];
  const size_t element_bytes = exchange.element_bytes(), part_count = exchange.part_count();
  size_t longest = 0;
  for (const ElementSpan& piece : in) longest = std::max(longest, piece.count);
  const auto show = [&](uint64_t round) {
    for (int part = 0; part < exchange.size(); ++part) {
      if (part == exchange.rank() && !summer.shows_own()) continue;
      const Range range = PieceOf(in[part].count, round, part_count);
      summer.Show(exchange.window(part * part_count), in[part].data + range.begin * element_bytes,
                  range.count);
    }
  };
  const auto take = [&](uint64_t round) {
    const Range range = PieceOf(out.count, round, part_count);
    const size_t offset_bytes = range.begin * element_bytes;
    if (range.count > 0) {
      summer.Sum(out.data + offset_bytes, in[exchange.rank()].data + offset_bytes,
                 exchange.rank() * part_count, range.count);
    }
    return Status::Ok();
  };
  return exchange.Run((longest + part_count - 1) / part_count, show, take);
}

}  // namespace elastates
