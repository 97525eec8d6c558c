#include <algorithm>
#include <cstring>
#include <vector>

#include "comm/collectives/messages.h"
#include "comm/shared/local_algorithms.h"

namespace elastates {
namespace {

// Measured on two cores against windows: two members all-reduce 1 MiB in 0.20 ms instead of 0.25, 16 MiB
// in 2.6 instead of 3.4, but 64 MiB in 19.6 instead of 16.8.
constexpr size_t kLeastBytes = 256 << 10;
constexpr size_t kMostBytes = 32 << 20;
constexpr size_t kCacheBytes = 512 << 10;  // blocks of all members that are summed at once

size_t BytesOf(const std::vector<ElementSpan>& pieces, size_t element_bytes) {
  size_t count = 0;
  for (const ElementSpan& piece : pieces) count += piece.count;
  return count * element_bytes;
}

uint64_t AddressOf(const ElementSpan& piece, size_t offset_bytes = 0) {
  return reinterpret_cast<uint64_t>(piece.data) + offset_bytes;
}

// Every member shows one address for each other one, in its first round.
void ShowAddress(Exchange& exchange, int for_rank, uint64_t address) {
  std::memcpy(exchange.window() + for_rank * sizeof(address), &address, sizeof(address));
}

uint64_t AddressShownBy(const Exchange& exchange, int rank) {
  uint64_t address;
  std::memcpy(&address, exchange.window_of(rank) + exchange.rank() * sizeof(address), sizeof(address));
  return address;
}

// Sums `count` elements in the order of ranks: our own from `own`, the others' from their memory.
Status SumFromMemory(Exchange& exchange, char* target, const char* own, size_t count) {
  const Collective& collective = exchange.collective();
  const int size = exchange.size();
  const size_t element_bytes = exchange.element_bytes();
  const size_t block_count = std::max<size_t>(kCacheBytes / size / element_bytes, 1);
  char* scratch = exchange.Scratch(size * block_count * element_bytes);
  std::vector<const void*> sources(size);
  std::vector<uint64_t> addresses(size);
  for (int rank = 0; rank < size; ++rank) addresses[rank] = AddressShownBy(exchange, rank);
  for (size_t begin = 0; begin < count; begin += block_count) {
    const size_t length = std::min(block_count, count - begin), offset = begin * element_bytes;
    for (int rank = 0; rank < size; ++rank) {
      char* block = scratch + rank * block_count * element_bytes;
      sources[rank] = rank == exchange.rank() ? own + offset : block;
      if (rank == exchange.rank()) continue;
      Status read = exchange.Read(rank, addresses[rank] + offset, block, length * element_bytes);
      if (!read.ok()) return read;
    }
    CombineAll(collective.type, collective.reduction.kind, target + offset, sources.data(), size, length);
    Conclude(collective.type, collective.reduction, target + offset, length, size);
  }
  return Status::Ok();
}

// The last round of each: nobody leaves, and may change its memory, before all have read it.
constexpr uint64_t kAndLeave = 1;

Status DirectReduceScatter(Exchange& exchange) {
  const Collective& collective = exchange.collective();
  const int own = exchange.rank();
  return exchange.Run(
      1 + kAndLeave,
      [&](uint64_t round) {
        for (int rank = 0; round == 0 && rank < exchange.size(); ++rank) {
          ShowAddress(exchange, rank, AddressOf(collective.in[rank]));
        }
      },
      [&](uint64_t round) {
        if (round > 0) return Status::Ok();
        return SumFromMemory(exchange, collective.out[0].data, collective.in[own].data,
                             collective.out[0].count);
      });
}

// Of two members: each sums its half, then reads the other's.
Status DirectAllReduce(Exchange& exchange) {
  const ElementSpan &in = exchange.collective().in[0], &out = exchange.collective().out[0];
  const int other = 1 - exchange.rank();
  const size_t element_bytes = exchange.element_bytes(), half = in.count / 2;
  const size_t counts[] = {half, in.count - half}, offsets[] = {0, half * element_bytes};
  const size_t own_offset = offsets[exchange.rank()], other_offset = offsets[other];
  return exchange.Run(
      2 + kAndLeave,
      [&](uint64_t round) {
        if (round == 0) ShowAddress(exchange, other, AddressOf(in, other_offset));
        if (round == 1) ShowAddress(exchange, other, AddressOf(out, own_offset));
      },
      [&](uint64_t round) {
        if (round == 0) {
          return SumFromMemory(exchange, out.data + own_offset, in.data + own_offset,
                               counts[exchange.rank()]);
        }
        if (round > 1) return Status::Ok();
        return exchange.Read(other, AddressShownBy(exchange, other), out.data + other_offset,
                             counts[other] * element_bytes);
      });
}

// Broadcast and all-gather of two members: what one has, the other reads.
Status DirectMove(Exchange& exchange) {
  const Collective& collective = exchange.collective();
  const bool is_broadcast = collective.kind == CollectiveKind::kBroadcast;
  const int own = exchange.rank(), other = 1 - own;
  const ElementSpan& shown = is_broadcast ? collective.out[0] : collective.in[0];
  const ElementSpan& taken = is_broadcast ? collective.out[0] : collective.out[other];
  const bool takes = !is_broadcast || own != collective.root;
  return exchange.Run(
      1 + kAndLeave,
      [&](uint64_t round) {
        if (round == 0) ShowAddress(exchange, other, AddressOf(shown));
      },
      [&](uint64_t round) {
        if (round > 0) return Status::Ok();
        if (!is_broadcast) CopyPiece(collective.in[0], collective.out[own], exchange.element_bytes());
        if (!takes) return Status::Ok();
        return exchange.Read(other, AddressShownBy(exchange, other), taken.data,
                             taken.count * exchange.element_bytes());
      });
}

}  // namespace

// Decided by what all members know: the lengths of these operations, and whether all can read.
bool ReadsDirectly(const Exchange& exchange) {
  const Collective& collective = exchange.collective();
  if (!exchange.all_read() || collective.reduction.kind == ReduceKind::kPremulSum) return false;
  const bool is_pair = exchange.size() == 2;
  size_t size_bytes = 0;
  switch (collective.kind) {
    case CollectiveKind::kReduceScatter:
      size_bytes = BytesOf(collective.in, exchange.element_bytes());
      break;
    case CollectiveKind::kAllReduce:
    case CollectiveKind::kBroadcast:
    case CollectiveKind::kAllGather:
      size_bytes = is_pair ? BytesOf(collective.out, exchange.element_bytes()) : 0;
      break;
    default:
      break;
  }
  return size_bytes >= kLeastBytes && size_bytes < kMostBytes;
}

Status DirectExchange(Exchange& exchange) {
  switch (exchange.collective().kind) {
    case CollectiveKind::kReduceScatter:
      return DirectReduceScatter(exchange);
    case CollectiveKind::kAllReduce:
      return DirectAllReduce(exchange);
    default:
      return DirectMove(exchange);
  }
}

}  // namespace elastates
