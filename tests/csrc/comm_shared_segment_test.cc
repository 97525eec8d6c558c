// Segments, what is refused as one, votes that outlive their voter, and memory of other processes.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "comm_shared_parts.h"

namespace elastates {
namespace {

using namespace testing;

std::unique_ptr<SharedSegment> MakeSegment(MemberId member) {
  Result<std::unique_ptr<SharedSegment>> segment = SharedSegment::Create(member);
  CHECK_OK(segment.status());
  return std::move(segment).value();
}

std::string WhyRefused(int fd, MemberId member) {
  Result<std::unique_ptr<PeerSegment>> peer = PeerSegment::Map(fd, member);
  CHECK(!peer.ok());
  return peer.status().message();
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(nobody_else_can_map_a_segment_writable_or_resize_it) {
  auto segment = MakeSegment(7);
  CHECK(mmap(nullptr, 4096, PROT_WRITE, MAP_SHARED, segment->fd(), 0) == MAP_FAILED);
  CHECK(ftruncate(segment->fd(), 4096) != 0);
  const std::string path = "/proc/self/fd/" + std::to_string(segment->fd());
  OwnedFd writer(open(path.c_str(), O_RDWR | O_CLOEXEC));
  CHECK(static_cast<bool>(writer));
  CHECK(ftruncate(writer.get(), 4096) != 0);
  CHECK(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writer.get(), 0) == MAP_FAILED);
}

TEST(what_is_no_segment_of_this_version_is_refused) {
  auto segment = MakeSegment(7);
  CHECK(Contains(WhyRefused(segment->fd(), 8), "belongs to member 7"));
  CHECK(Contains(WhyRefused(STDIN_FILENO, 7), "not a memfd"));
  OwnedFd open_end(memfd_create("open-end", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  CHECK(Contains(WhyRefused(open_end.get(), 7), "not sealed"));
  CHECK_EQ(fcntl(open_end.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  CHECK(Contains(WhyRefused(open_end.get(), 7), "same version"));
  CHECK_EQ(ftruncate(open_end.get(), kSegmentBytes), 0);
  CHECK(Contains(WhyRefused(open_end.get(), 7), "does not begin like"));
}

TEST(slots_run_out_with_a_reason_and_come_back) {
  auto segment = MakeSegment(7);
  for (size_t slot = 0; slot < kNumSlots; ++slot) CHECK_EQ(segment->OpenSlot(1 + slot, 1).value(), slot);
  Result<size_t> none = segment->OpenSlot(99, 1);
  CHECK(none.status().code() == StatusCode::kResourceExhausted);
  segment->CloseSlot(5);
  CHECK_EQ(segment->OpenSlot(99, 1).value(), size_t{5});
}

TEST(a_closed_slot_is_used_again_last_of_all) {
  auto segment = MakeSegment(7);
  CHECK_EQ(segment->OpenSlot(1, 1).value(), size_t{0});
  segment->CloseSlot(0);
  for (size_t slot = 1; slot < kNumSlots; ++slot) CHECK_EQ(segment->OpenSlot(1, 2).value(), slot);
}

TEST(progress_is_counted_across_its_wrap) {
  const Progress late{3, (uint32_t{1} << 31) - 1, false};
  CHECK_EQ(Progress::Of(late.word()).count, late.count);
  CHECK(late.Reached(late.count) && late.Reached(late.count - 5));
  CHECK(!late.Reached(0) && !late.Reached(1));  // these come next
  const Progress wrapped{3, 1, true};
  CHECK(wrapped.Reached(late.count) && Progress::Of(wrapped.word()).closed);
}

TEST(a_slot_is_found_by_group_and_epoch) {
  auto segment = MakeSegment(7);
  auto peer = PeerSegment::Map(segment->fd(), 7).value();
  CHECK(!peer->Find(10, 1).value());
  segment->OpenSlot(9, 1).value();
  const size_t slot = segment->OpenSlot(10, 2).value();
  CHECK_EQ(peer->Find(10, 2).value()->slot, slot);
  CHECK(!peer->Find(10, 3).value());  // it has yet to come there
  CHECK(peer->Find(10, 1).status().code() == StatusCode::kRevoked);
  segment->CloseSlot(slot);
  CHECK(!peer->Find(10, 2).value());
}

TEST(the_last_vote_is_read_and_too_long_ones_are_refused) {
  auto segment = MakeSegment(7);
  VotePage votes(segment->votes());
  CHECK_EQ(ReadVote(*segment->votes()).value(), "");
  CHECK_OK(votes.Write("epoch 3"));
  CHECK_OK(votes.Write(std::string(kVoteBytes, 'x')));
  CHECK(votes.Write(std::string(kVoteBytes + 1, 'y')).code() == StatusCode::kInvalidArgument);
  CHECK_EQ(ReadVote(*segment->votes()).value(), std::string(kVoteBytes, 'x'));
}

std::string VoteNumber(uint64_t number) { return std::string(20000, static_cast<char>('a' + number % 26)); }

// The reader must never see half of one vote and half of the next, nor after a death anything but one of
// them.
TEST(a_voter_killed_while_writing_leaves_a_whole_vote) {
  Players players(2, [](Player& player) {
    if (player.rank() == 0) {
      VotePage votes(player.segment().votes());
      for (uint64_t i = 0; true; ++i) {
        CHECK_OK(votes.Write(VoteNumber(i)));
        player.mark(0).store(i + 1);
      }
    }
    CHECK(Until([&] { return player.mark(0).load() > 0; }));
    auto voter = player.Find(0);
    for (int i = 0; player.mark(1).load() == 0; ++i) {
      const std::string vote = player.neighbours().VoteOf(Player::IdOf(0)).value();
      CHECK_EQ(vote, std::string(20000, vote.at(0)));
      player.mark(2).store(i);
    }
    const std::string last = player.neighbours().VoteOf(Player::IdOf(0)).value();
    const uint64_t num_written = player.mark(0).load();
    CHECK(last == VoteNumber(num_written - 1) || last == VoteNumber(num_written));
  });
  CHECK(Until([&] { return players.mark(2).load() > 500; }));
  players.Signal(0, SIGKILL);
  CHECK_EQ(players.Wait(0), -SIGKILL);
  players.mark(1).store(1);
  players.WaitForAll();
}

TEST(memory_of_a_peer_is_read_until_it_dies_and_bad_addresses_are_errors) {
  Players players(2, [](Player& player) {
    std::vector<uint64_t> private_bytes(100000, 42);
    if (player.rank() == 0) {
      player.mark(0).store(reinterpret_cast<uint64_t>(private_bytes.data()));
      Until([] { return false; });
    }
    CHECK(Until([&] { return player.mark(0).load() != 0; }));
    auto peer = player.Find(0);
    CHECK(peer->memory != nullptr);
    std::vector<uint64_t> copy(private_bytes.size(), 0);
    const size_t size_bytes = copy.size() * sizeof(uint64_t);
    CHECK_OK(peer->memory->Read(player.mark(0).load(), copy.data(), size_bytes));
    CHECK(copy == private_bytes);
    CHECK(peer->memory->Read(16, copy.data(), 8).code() == StatusCode::kIoError);
    player.mark(1).store(1);
    CHECK(Until([&] { return player.mark(2).load() != 0; }));
    const Status read = peer->memory->Read(player.mark(0).load(), copy.data(), size_bytes);
    CHECK(read.code() == StatusCode::kPeerLost);
  });
  CHECK(Until([&] { return players.mark(1).load() != 0; }));
  players.Signal(0, SIGKILL);
  CHECK_EQ(players.Wait(0), -SIGKILL);
  players.mark(2).store(1);
  players.WaitForAll();
}

TEST(reads_can_be_forbidden) {
  Players players(2, [](Player& player) {
    setenv("ELASWAVE_NO_REMOTE_READS", "1", 1);
    CHECK(player.Find(1 - player.rank())->memory == nullptr);
    player.mark(player.rank()).store(1);
    CHECK(Until([&] { return player.mark(1 - player.rank()).load() != 0; }));
  });
  players.WaitForAll();
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
