// The arena: blocks are lent once, come back once, in any order, from any thread.
#include "arena/arena.h"

#include <atomic>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "copy/device_copy.h"

namespace elastates {
namespace {

constexpr size_t kBlockBytes = 4096;

std::unique_ptr<Arena> MakeArena(size_t num_blocks) {
  ArenaOptions options;
  options.size_bytes = num_blocks * kBlockBytes;
  options.block_bytes = kBlockBytes;
  Result<std::unique_ptr<Arena>> arena = Arena::Create(options);
  CHECK_OK(arena.status());
  return std::move(arena).value();
}

TEST(rounds_its_size_up_to_whole_blocks) {
  ArenaOptions options;
  options.size_bytes = 2 * kBlockBytes + 1;
  options.block_bytes = kBlockBytes;
  Result<std::unique_ptr<Arena>> arena = Arena::Create(options);
  CHECK_OK(arena.status());
  CHECK_EQ(arena.value()->num_blocks(), 3u);
  CHECK_EQ(MakeArena(0)->num_blocks(), 1u);
}

TEST(refuses_what_it_cannot_be) {
  ArenaOptions options;
  options.size_bytes = 1 << 20;
  for (size_t block_bytes : {0, 1, 4095, 4097}) {
    options.block_bytes = block_bytes;
    CHECK_EQ(Arena::Create(options).status().code(), StatusCode::kInvalidArgument);
  }
  options.block_bytes = 4096;
  for (size_t size_bytes : {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 4}) {
    options.size_bytes = size_bytes;
    CHECK(!Arena::Create(options).ok());
  }
}

TEST(pinned_needs_a_device) {
  if (NumDevices() > 0) return;
  ArenaOptions options;
  options.size_bytes = kBlockBytes;
  options.block_bytes = kBlockBytes;
  options.pinned = true;
  const Status status = Arena::Create(options).status();
  CHECK(!status.ok());
  CHECK(status.message().find("CUDA") != std::string::npos);
}

TEST(blocks_are_aligned_writable_and_disjoint) {
  auto arena = MakeArena(8);
  std::vector<Lease> leases;
  std::set<size_t> indices;
  while (Lease lease = arena->TryAcquire()) {
    CHECK_EQ(reinterpret_cast<uintptr_t>(lease.data()) % 4096, 0u);
    indices.insert(lease.index());
    std::memset(lease.data(), static_cast<int>(lease.index()), kBlockBytes);
    leases.push_back(lease);
  }
  CHECK_EQ(indices.size(), 8u);
  CHECK_EQ(*indices.rbegin(), 7u);
  for (const Lease& lease : leases) {
    CHECK_EQ(lease.data()[0], static_cast<char>(lease.index()));
    CHECK_EQ(lease.data()[kBlockBytes - 1], static_cast<char>(lease.index()));
  }
}

TEST(a_block_is_free_when_its_last_lease_is_gone) {
  auto arena = MakeArena(1);
  Lease first = arena->TryAcquire();
  Lease second = first;
  first.Release();
  CHECK_EQ(arena->free_blocks(), 0u);
  CHECK(!arena->TryAcquire());
  Lease third = std::move(second);
  CHECK(!second);  // NOLINT: a moved-from lease holds nothing, which is what is tested
  third = Lease();
  CHECK_EQ(arena->free_blocks(), 1u);
  third.Release();
  CHECK_EQ(arena->free_blocks(), 1u);
}

TEST(blocks_come_back_in_any_order) {
  auto arena = MakeArena(3);
  Lease a = arena->TryAcquire(), b = arena->TryAcquire(), c = arena->TryAcquire();
  const size_t middle = b.index();
  b.Release();
  CHECK_EQ(arena->TryAcquire().index(), middle);
  a.Release();
  c.Release();
  CHECK_EQ(arena->free_blocks(), 3u);
}

TEST(the_listener_may_take_the_block_that_was_freed) {
  auto arena = MakeArena(1);
  Lease taken;
  int num_calls = 0;
  Lease held = arena->TryAcquire();
  arena->SetFreedListener([&] {
    ++num_calls;
    taken = arena->TryAcquire();
  });
  held.Release();
  CHECK_EQ(num_calls, 1);
  CHECK(static_cast<bool>(taken));
  arena->SetFreedListener(nullptr);
  taken.Release();
  CHECK_EQ(num_calls, 1);
}

TEST(leases_outlive_the_arena) {
  auto arena = MakeArena(2);
  Lease lease = arena->TryAcquire();
  bool heard = false;
  arena->SetFreedListener([&] { heard = true; });
  arena.reset();
  std::memset(lease.data(), 1, kBlockBytes);
  lease.Release();
  CHECK(!heard);
}

// Each holder marks its block and must find the mark when it lets go: no block is ever lent twice.
TEST(threads_never_share_a_block) {
  auto arena = MakeArena(4);
  std::atomic<int> num_freed{0}, num_taken{0};
  arena->SetFreedListener([&] { num_freed.fetch_add(1); });
  std::vector<std::thread> threads;
  for (int id = 1; id <= 6; ++id) {
    threads.emplace_back([&, id] {
      for (int i = 0; i < 2000; ++i) {
        Lease lease = arena->TryAcquire();
        if (!lease) continue;
        num_taken.fetch_add(1);
        std::memset(lease.data(), id, 64);
        Lease copy = lease;
        lease.Release();
        CHECK_EQ(copy.data()[63], static_cast<char>(id));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(arena->free_blocks(), 4u);
  CHECK_EQ(num_freed.load(), num_taken.load());
  CHECK_GT(num_taken.load(), 0);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
