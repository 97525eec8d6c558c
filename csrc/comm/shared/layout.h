// What lies where in the memory that a process shares with the others of its host.
//
//   control page   who the owner is; one SlotEntry per group slot: which group and epoch, how far it has come
//   votes          two copies of what the owner last voted (vote_page.h)
//   windows        two per slot: what the owner shows the group at even and at odd steps
//
// Only the owner writes; everybody else maps it read-only. So a process that was stopped and wakes up later
// writes where nobody reads any more, and a reader trusts nothing here: indices and sizes are its own, and
// what it reads twice it copies first. Fixed-width fields, one machine: no portability beyond that.
#ifndef ELASTATES_COMM_SHARED_LAYOUT_H_
#define ELASTATES_COMM_SHARED_LAYOUT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace elastates {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a futex waits on the low half of a 64-bit word");
static_assert(std::atomic<uint64_t>::is_always_lock_free, "a lock would lie in one process only");

constexpr uint64_t kSegmentMagic = 0x32676573'74736c65;  // "elstseg2"
constexpr size_t kNumSlots = 64;                         // groups a process can be in at once
constexpr size_t kWindowBytes = 4 << 20;                 // untouched pages cost nothing
constexpr size_t kMaxLocalMembers = 1024;                // of a group, on one host
constexpr size_t kVoteBytes = (32 << 10) - 64;           // a view of two hundred members

// What stands before it in the program is done, for other processes too, before what stands behind it.
inline void OrderFence() {
#if defined(__SANITIZE_THREAD__)  // knows no fences, and sees nothing of other processes
  std::atomic_signal_fence(std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

// How far the owner of a slot has come. The upper half names the opening of the slot (each gets another
// number), the lower one counts its arrivals in steps of two; its lowest bit says that the slot is closed.
// Together, so that a reader sees them at one moment, and the counter alone changes with everything that a
// sleeper waits for.
struct Progress {
  uint32_t opening = 0;
  uint32_t count = 0;  // number of arrivals, modulo 2^31
  bool closed = false;

  static Progress Of(uint64_t word) {
    return {static_cast<uint32_t>(word >> 32), static_cast<uint32_t>(word) >> 1, (word & 1) != 0};
  }
  uint64_t word() const { return uint64_t{opening} << 32 | uint32_t{count << 1} | (closed ? 1 : 0); }
  // Whether `count` arrivals have been made or more; right while they are less than 2^30 apart.
  bool Reached(uint32_t step) const { return static_cast<int32_t>((count - step) << 1) >= 0; }
};

struct alignas(64) SlotEntry {
  std::atomic<uint64_t> group;
  std::atomic<uint32_t> epoch;
  std::atomic<uint64_t> progress;
  std::atomic<uint32_t> given_up;  // the opening in which an operation has failed on the owner
};

struct alignas(4096) ControlPage {
  uint64_t magic;
  uint64_t size_bytes;  // of the segment; differs where one of the constants does
  uint64_t member;
  int64_t pid;
  uint64_t probe_address;  // where the owner's private memory holds probe_value
  uint64_t probe_value;
  std::atomic<uint32_t> directory;  // changes with every opening and closing of a slot; a futex
  SlotEntry slots[kNumSlots];
};

struct alignas(64) VoteCopy {
  std::atomic<uint32_t> version;  // odd while it is written
  std::atomic<uint32_t> size_bytes;
  char bytes[kVoteBytes];
};

struct alignas(4096) VoteArea {
  std::atomic<uint32_t> latest;  // index of the copy that was completed last
  VoteCopy copies[2];
};

constexpr size_t kVotesOffset = sizeof(ControlPage);
constexpr size_t kWindowsOffset = kVotesOffset + sizeof(VoteArea);
constexpr size_t kSlotBytes = 2 * kWindowBytes;
constexpr size_t kSegmentBytes = kWindowsOffset + kNumSlots * kSlotBytes;
static_assert(kWindowsOffset % 4096 == 0, "windows are mapped one slot at a time");

constexpr size_t WindowOffset(size_t slot) { return kWindowsOffset + slot * kSlotBytes; }

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_LAYOUT_H_
