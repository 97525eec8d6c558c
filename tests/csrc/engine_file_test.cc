// The files that the engine writes are exact, whatever the shape of the state and the size of the arena.

#include <future>
#include <random>

#include "base/thread.h"
#include "engine/cut.h"
#include "engine_parts.h"

namespace elastates {
namespace {

void WriteAndCheck(const EngineOptions& options, size_t header_bytes, const std::vector<size_t>& sizes,
                   uint32_t seed = 1) {
  TempDir dir;
  auto engine = MakeEngine(options);
  Sample sample = MakeSample(dir.File("data"), header_bytes, sizes, options.block_bytes, 1, seed);
  auto snapshot = engine->Submit(sample.plan);
  CHECK_EQ(snapshot->WaitWritten(kTimeoutS).message(), std::string());
  CheckFileAndCrcs(sample, dir.File("data"), *snapshot);
  CHECK(snapshot->WaitCopied(0).ok());
  SnapshotTimes times = snapshot->times();
  CHECK(times.submitted_s > 0 && times.submitted_s <= times.copied_s && times.copied_s <= times.written_s);
  engine->Close();
  CHECK_EQ(engine->free_bytes(), engine->stats().arena_bytes);
  CHECK_EQ(engine->stats().bytes_written, sample.expected_file.size());
  CHECK_EQ(engine->stats().bytes_copied, sample.expected_file.size() - header_bytes);
}

TEST(one_small_tensor) { WriteAndCheck(SmallEngine(), 64, {100}); }
TEST(header_only) { WriteAndCheck(SmallEngine(), 4096, {}); }
TEST(empty_tensors_between_others) { WriteAndCheck(SmallEngine(), 8, {0, 1, 0, 0, 4087, 0, 5, 0}); }
TEST(file_that_ends_at_a_chunk_border) { WriteAndCheck(SmallEngine(), 4096, {4096, 8192}); }
TEST(header_longer_than_two_chunks) { WriteAndCheck(SmallEngine(), 10000, {3, 9000}); }
TEST(tensor_much_larger_than_the_arena_streams_through) { WriteAndCheck(SmallEngine(2), 512, {1000000}); }
TEST(arena_of_one_block) { WriteAndCheck(SmallEngine(1), 512, {100000, 1, 50000}); }
TEST(many_tiny_tensors) { WriteAndCheck(SmallEngine(4, 65536), 4096, std::vector<size_t>(5000, 37)); }

TEST(random_shapes) {
  std::mt19937 random(7);
  for (uint32_t round = 0; round < 25; ++round) {
    std::vector<size_t> sizes(random() % 40);
    for (size_t& size : sizes) size = random() % 3 == 0 ? random() % 3 : random() % 20000;
    EngineOptions options = SmallEngine(1 + random() % 6, 4096 << (random() % 2));
    options.num_copy_threads = 1 + static_cast<int>(random() % 3);
    options.write_depth = 1 + static_cast<int>(random() % 3);
    options.write_backend = round % 2 == 0 ? WriteBackend::kThreads : WriteBackend::kAuto;
    WriteAndCheck(options, 1 + random() % 9000, sizes, round);
  }
}

TEST(snapshots_in_flight_together_do_not_touch_each_others_bytes) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(3));
  std::vector<Sample> samples;
  std::vector<std::shared_ptr<Snapshot>> snapshots;
  for (uint32_t i = 0; i < 12; ++i) {
    samples.push_back(MakeSample(dir.File(std::to_string(i)), 100, {30000, 0, 7, 9999 + i}, 4096, 2, i));
    snapshots.push_back(engine->Submit(samples.back().plan));
  }
  for (uint32_t i = 0; i < 12; ++i) {
    CHECK(snapshots[i]->WaitWritten(kTimeoutS).ok());
    CheckFileAndCrcs(samples[i], dir.File(std::to_string(i)), *snapshots[i]);
  }
  CHECK_EQ(engine->stats().num_written, 12u);
}

TEST(bytes_are_those_of_the_moment_of_copying) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(64));
  Sample sample = MakeSample(dir.File("data"), 100, {50000, 50000}, 4096);
  auto sources = std::static_pointer_cast<Sources>(sample.plan.owner);
  auto snapshot = engine->Submit(sample.plan);
  CHECK(snapshot->WaitCopied(kTimeoutS).ok());
  for (auto& tensor : sources->tensors)
    std::fill(tensor.begin(), tensor.end(), 'x');  // as an optimizer would
  CHECK(snapshot->WaitWritten(kTimeoutS).ok());
  CheckFileAndCrcs(sample, dir.File("data"), *snapshot);
}

TEST(cursor_covers_the_file_with_chunks_and_pieces) {
  Sample sample = MakeSample("unused", 5000, {0, 10, 20000, 0, 1, 4096, 0}, 4096, 3);
  ChunkCursor cursor(sample.plan, 4096);
  uint64_t chunk_at = 0, piece_at = 5000;
  size_t extents_ended = 0;
  while (!cursor.AtEnd()) {
    ChunkRange chunk = cursor.Next();
    CHECK_EQ(chunk.begin, chunk_at);
    chunk_at = chunk.end;
    ForEachPiece(sample.plan, chunk, [&](const Piece& piece) {
      CHECK_EQ(piece.file_offset, piece_at);
      CHECK(piece.size_bytes > 0 && piece.file_offset + piece.size_bytes <= chunk.end);
      CHECK_EQ(piece.extent, extents_ended);
      piece_at += piece.size_bytes;
      extents_ended += piece.ends_extent;
    });
  }
  CHECK_EQ(chunk_at, sample.plan.file_size);
  CHECK_EQ(piece_at, sample.plan.file_size);
  CHECK_EQ(extents_ended, sample.plan.extent_ends.size());
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
