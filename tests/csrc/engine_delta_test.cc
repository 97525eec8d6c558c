// Deltas: what changed is written, what did not stays a hole, and both together are the state.

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <random>

#include "engine/delta.h"
#include "engine_parts.h"

namespace elastates {
namespace {

constexpr size_t kExtentBytes = 4096;
constexpr size_t kBlockBytes = 16384;

std::shared_ptr<const ContentKey> RandomKey() {
  std::random_device device;
  std::string bytes(ContentKey::kSizeBytes, '\0');
  for (char& byte : bytes) byte = static_cast<char>(device());
  return std::make_shared<const ContentKey>(bytes.data());
}

// A state in memory, saved again and again: extents end at multiples of 4096 of the file.
class State {
 public:
  State(size_t header_bytes, std::vector<size_t> sizes) : header_(header_bytes, 'h'), sources_(new Sources) {
    std::mt19937 random(1);
    for (size_t size : sizes) {
      std::vector<char> bytes(size);
      for (char& byte : bytes) byte = static_cast<char>(random());
      sources_->tensors.push_back(std::move(bytes));
    }
  }

  SnapshotPlan Plan(const std::string& path, std::shared_ptr<const ContentKey> key,
                    std::shared_ptr<const ExtentDigests> base = nullptr) const {
    SnapshotPlan plan;
    plan.path = path;
    plan.header = header_;
    plan.file_size = header_.size();
    for (const auto& tensor : sources_->tensors) {
      plan.segments.push_back({tensor.data(), tensor.size(), plan.file_size, 0, -1});
      plan.file_size += tensor.size();
    }
    for (uint64_t end = header_.size() / kExtentBytes * kExtentBytes + kExtentBytes; end < plan.file_size;
         end += kExtentBytes) {
      plan.extent_ends.push_back(end);
    }
    if (plan.file_size > header_.size()) plan.extent_ends.push_back(plan.file_size);
    plan.content_key = std::move(key);
    plan.base = std::move(base);
    plan.owner = sources_;
    return plan;
  }

  std::string File() const {
    std::string file = header_;
    for (const auto& tensor : sources_->tensors) file.append(tensor.begin(), tensor.end());
    return file;
  }

  std::vector<std::vector<char>>& tensors() { return sources_->tensors; }

 private:
  std::string header_;
  std::shared_ptr<Sources> sources_;
};

uint64_t AllocatedBytes(const std::string& path) {
  struct stat info;
  CHECK_EQ(stat(path.c_str(), &info), 0);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

// The file as a reader sees it: extents that did not change come from `base_file`.
std::string Resolve(const Snapshot& snapshot, const std::string& delta_file, const std::string& base_file) {
  std::string file = delta_file;
  uint64_t begin = snapshot.plan().header.size();
  for (size_t i = 0; i < snapshot.plan().extent_ends.size(); ++i) {
    const uint64_t end = snapshot.plan().extent_ends[i];
    if (snapshot.extent_changed()[i] == 0) {
      file.replace(begin, end - begin, base_file, begin, end - begin);
      CHECK(delta_file.substr(begin, end - begin) == std::string(end - begin, '\0'));
    }
    CHECK_EQ(snapshot.crcs()[i], BitwiseCrc32c(file.data() + begin, end - begin));
    begin = end;
  }
  return file;
}

size_t NumChanged(const Snapshot& snapshot) {
  size_t count = 0;
  for (uint8_t changed : snapshot.extent_changed()) count += changed;
  return count;
}

TEST(nothing_changed_writes_the_header_alone) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(4, kBlockBytes));
  State state(4096, {100000, 0, 7, 50000});
  auto full = engine->Submit(state.Plan(dir.File("full"), RandomKey()));
  CHECK_EQ(full->WaitWritten(kTimeoutS).message(), std::string());
  CHECK(full->extent_changed().empty());
  auto delta = engine->Submit(state.Plan(dir.File("delta"), full->digests()->key, full->digests()));
  CHECK_EQ(delta->WaitWritten(kTimeoutS).message(), std::string());
  CHECK_EQ(NumChanged(*delta), 0u);
  CHECK(AllocatedBytes(dir.File("delta")) < 65536);  // of 154 KB; how finely files have holes varies
  CHECK_EQ(engine->stats().bytes_written, state.File().size() + 4096);
  CHECK(Resolve(*delta, ReadFile(dir.File("delta")), ReadFile(dir.File("full"))) == state.File());
}

TEST(everything_changed_writes_the_whole_file) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(4, kBlockBytes));
  State state(4096, {100000, 31});
  auto full = engine->Submit(state.Plan(dir.File("full"), RandomKey()));
  CHECK(full->WaitWritten(kTimeoutS).ok());
  for (auto& tensor : state.tensors()) {
    for (char& byte : tensor) byte = static_cast<char>(byte + 1);
  }
  auto delta = engine->Submit(state.Plan(dir.File("delta"), full->digests()->key, full->digests()));
  CHECK_EQ(delta->WaitWritten(kTimeoutS).message(), std::string());
  CHECK_EQ(NumChanged(*delta), delta->crcs().size());
  CHECK(ReadFile(dir.File("delta")) == state.File());
}

TEST(random_changes_over_a_chain_of_deltas) {
  std::mt19937 random(11);
  for (int round = 0; round < 15; ++round) {
    TempDir dir;
    EngineOptions options = SmallEngine(1 + random() % 5, kBlockBytes);
    options.num_copy_threads = 1 + static_cast<int>(random() % 3);
    options.write_backend = round % 2 == 0 ? WriteBackend::kThreads : WriteBackend::kAuto;
    auto engine = MakeEngine(options);
    std::vector<size_t> sizes(1 + random() % 20);
    for (size_t& size : sizes) size = random() % 3 == 0 ? random() % 100 : random() % 60000;
    State state(4096 * (1 + random() % 6), sizes);
    auto last = engine->Submit(state.Plan(dir.File("0"), RandomKey()));
    CHECK_EQ(last->WaitWritten(kTimeoutS).message(), std::string());
    std::string resolved = ReadFile(dir.File("0"));
    for (int step = 1; step < 5; ++step) {
      const std::string before = state.File();
      for (auto& tensor : state.tensors()) {
        if (!tensor.empty() && random() % 2 == 0) tensor[random() % tensor.size()] ^= 1;
      }
      auto delta =
          engine->Submit(state.Plan(dir.File(std::to_string(step)), last->digests()->key, last->digests()));
      CHECK_EQ(delta->WaitWritten(kTimeoutS).message(), std::string());
      const std::string now = state.File();
      resolved = Resolve(*delta, ReadFile(dir.File(std::to_string(step))), resolved);
      CHECK(resolved == now);
      uint64_t begin = delta->plan().header.size();
      for (size_t i = 0; i < delta->crcs().size(); ++i) {  // no extent is written that did not change
        const uint64_t end = delta->plan().extent_ends[i];
        CHECK_EQ(delta->extent_changed()[i] != 0,
                 now.compare(begin, end - begin, before, begin, end - begin) != 0);
        begin = end;
      }
      last = delta;
    }
  }
}

TEST(runs_merge_neighbours_and_keep_the_header) {
  State state(8192, {40000});
  auto key = RandomKey();
  auto base = std::make_shared<ExtentDigests>();
  base->key = key;
  SnapshotPlan plan = state.Plan("unused", key, base);
  base->contents.resize(plan.extent_ends.size());
  base->crcs.resize(plan.extent_ends.size());
  CHECK(ValidatePlan(plan, kBlockBytes).ok());
  ChunkCursor cursor(plan, kBlockBytes);
  Snapshot snapshot(plan, nullptr);
  for (size_t extent : {0, 3, 4, 9}) snapshot.SetUnchanged(extent);
  std::vector<std::pair<uint64_t, uint64_t>> runs;
  while (!cursor.AtEnd()) {
    for (const FileRun& run : RunsToWrite(snapshot, cursor.Next())) runs.emplace_back(run.begin, run.end);
  }
  const std::vector<std::pair<uint64_t, uint64_t>> expected = {
      {0, 8192}, {12288, 16384}, {16384, 20480}, {28672, 32768}, {32768, 45056}};
  CHECK(runs == expected);
}

TEST(a_base_of_another_layout_is_refused) {
  State state(4096, {40000});
  auto key = RandomKey();
  auto base = std::make_shared<ExtentDigests>();
  base->key = key;
  CHECK_EQ(ValidatePlan(state.Plan("unused", key, base), kBlockBytes).message(),
           std::string("plan: the base has 0 extents, the file 10"));
  base->contents.resize(10);
  base->crcs.resize(10);
  CHECK(ValidatePlan(state.Plan("unused", key, base), kBlockBytes).ok());
  CHECK_EQ(ValidatePlan(state.Plan("unused", RandomKey(), base), kBlockBytes).message(),
           std::string("plan: the base has another key"));
  State unaligned(100, {40000 + 4096 - 100});
  CHECK_EQ(ValidatePlan(unaligned.Plan("unused", key, base), kBlockBytes).message(),
           std::string("plan: the base has 10 extents, the file 11"));
  base->contents.resize(11);
  base->crcs.resize(11);
  CHECK_EQ(ValidatePlan(unaligned.Plan("unused", key, base), kBlockBytes).message(),
           std::string("plan: extent 0 of a delta begins at 100, no multiple of 4096"));
}

TEST(a_failed_write_of_one_run_fails_the_delta_and_the_next_goes_on) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(4, kBlockBytes));
  State state(4096, {100000});
  auto full = engine->Submit(state.Plan(dir.File("full"), RandomKey()));
  CHECK(full->WaitWritten(kTimeoutS).ok());
  for (size_t at = 0; at < 100000; at += 8192) state.tensors()[0][at] ^= 1;
  {
    FaultGuard guard(FaultIn("write", EIO, 3));
    auto broken = engine->Submit(state.Plan(dir.File("broken"), full->digests()->key, full->digests()));
    CHECK(!broken->WaitWritten(kTimeoutS).ok());
  }
  auto delta = engine->Submit(state.Plan(dir.File("delta"), full->digests()->key, full->digests()));
  CHECK_EQ(delta->WaitWritten(kTimeoutS).message(), std::string());
  CHECK(Resolve(*delta, ReadFile(dir.File("delta")), ReadFile(dir.File("full"))) == state.File());
  engine->Close();
  CHECK_EQ(engine->free_bytes(), engine->stats().arena_bytes);
}

// What a block filled by copies from devices goes through gives what host memory does.
TEST(a_block_that_is_filled_already_gets_the_digests_of_its_sources) {
  State state(4096, {100, 30000, 5});
  auto key = RandomKey();
  auto digests_of = [&](std::shared_ptr<const ExtentDigests> base, bool from_block) {
    Snapshot snapshot(state.Plan("unused", key, std::move(base)), nullptr);
    const std::string file = state.File();
    ChunkCursor cursor(snapshot.plan(), kBlockBytes);
    while (!cursor.AtEnd()) {
      const ChunkRange range = cursor.Next();
      std::string block = file.substr(range.begin, range.size_bytes());
      if (!from_block) {
        CopyDigested(&snapshot, range, block.data());
        continue;
      }
      uint64_t begin = std::max<uint64_t>(range.begin, 4096);
      for (size_t i = range.first_extent; begin < range.end; begin = snapshot.plan().extent_ends[i++]) {
        snapshot.SetCrc(i, BitwiseCrc32c(file.data() + begin, snapshot.plan().extent_ends[i] - begin));
      }
      DigestBlock(&snapshot, range, block.data());
    }
    return std::make_pair(snapshot.digests(), snapshot.extent_changed());
  };
  const auto host = digests_of(nullptr, false).first, device = digests_of(nullptr, true).first;
  CHECK(host->contents == device->contents);
  CHECK(host->crcs == device->crcs);
  state.tensors()[1][20000] ^= 1;
  const auto changed = digests_of(host, true).second;
  CHECK(changed == digests_of(host, false).second);
  CHECK_EQ(std::count(changed.begin(), changed.end(), 1), 1);
  CHECK_EQ(int{changed[(100 + 20000) / kExtentBytes]}, 1);
}

TEST(an_empty_device_tensor_among_others_does_not_make_a_device_copy) {
  TempDir dir;
  auto engine = MakeEngine(SmallEngine(4, kBlockBytes));
  State state(4096, {100, 0, 100});
  SnapshotPlan plan = state.Plan(dir.File("data"), nullptr);
  plan.segments[1].device = 0;
  auto snapshot = engine->Submit(std::move(plan));
  CHECK_EQ(snapshot->WaitWritten(kTimeoutS).message(), std::string());
  CHECK(ReadFile(dir.File("data")) == state.File());
  CHECK_EQ(snapshot->crcs()[0], BitwiseCrc32c(state.File().data() + 4096, 200));
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
