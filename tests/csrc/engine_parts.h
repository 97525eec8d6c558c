// Random snapshots with known bytes, and what their files must look like.
#ifndef ELASTATES_TESTS_CSRC_ENGINE_PARTS_H_
#define ELASTATES_TESTS_CSRC_ENGINE_PARTS_H_

#include <stdlib.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "engine/engine.h"
#include "storage/fault.h"

namespace elastates {

constexpr double kTimeoutS = 60;  // of a wait that must not take anywhere near as long

// A directory that is removed with everything in it.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "elastates-engine-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// The textbook loop over bits, which shares nothing with the engine's tables and instructions.
inline uint32_t BitwiseCrc32c(const char* data, size_t size_bytes) {
  uint32_t crc = 0xffffffff;
  for (size_t i = 0; i < size_bytes; ++i) {
    crc ^= static_cast<uint8_t>(data[i]);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78 : 0);
  }
  return ~crc;
}

struct Sources {
  std::vector<std::vector<char>> tensors;
};

// A plan over tensors of the given sizes; extents end at every chunk border and at random places between.
struct Sample {
  SnapshotPlan plan;
  std::string expected_file;
};

inline Sample MakeSample(const std::string& path, size_t header_bytes, const std::vector<size_t>& sizes,
                         size_t block_bytes, uint32_t num_groups = 1, uint32_t seed = 1) {
  std::mt19937 random(seed);
  auto sources = std::make_shared<Sources>();
  Sample sample;
  SnapshotPlan& plan = sample.plan;
  plan.path = path;
  for (size_t i = 0; i < header_bytes; ++i) plan.header += static_cast<char>('a' + random() % 26);
  plan.num_groups = num_groups;
  sample.expected_file = plan.header;
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::vector<char> bytes(sizes[i]);
    for (char& byte : bytes) byte = static_cast<char>(random());
    sources->tensors.push_back(std::move(bytes));
    const auto& tensor = sources->tensors.back();
    const uint32_t group = static_cast<uint32_t>(i * num_groups / sizes.size());
    plan.segments.push_back({tensor.data(), tensor.size(), sample.expected_file.size(), group, -1});
    sample.expected_file.append(tensor.begin(), tensor.end());
  }
  plan.file_size = sample.expected_file.size();
  for (uint64_t at = header_bytes; at < plan.file_size;) {
    uint64_t end = std::min<uint64_t>((at / block_bytes + 1) * block_bytes, plan.file_size);
    if (random() % 2 == 0) end = at + 1 + random() % (end - at);
    plan.extent_ends.push_back(end);
    at = end;
  }
  plan.owner = std::move(sources);
  return sample;
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline void CheckFileAndCrcs(const Sample& sample, const std::string& path, const Snapshot& snapshot) {
  const std::string file = ReadFile(path);
  CHECK_EQ(file.size(), sample.expected_file.size());
  CHECK(file == sample.expected_file);
  uint64_t at = snapshot.plan().header.size();
  for (size_t i = 0; i < snapshot.crcs().size(); ++i) {
    const uint64_t end = snapshot.plan().extent_ends[i];
    CHECK_EQ(snapshot.crcs()[i], BitwiseCrc32c(file.data() + at, end - at));
    at = end;
  }
  CHECK_EQ(at, file.size());
}

inline EngineOptions SmallEngine(size_t num_blocks = 8, size_t block_bytes = 4096) {
  EngineOptions options;
  options.arena_bytes = num_blocks * block_bytes;
  options.block_bytes = block_bytes;
  return options;
}

inline std::unique_ptr<Engine> MakeEngine(const EngineOptions& options) {
  auto engine = Engine::Create(options);
  CHECK(engine.ok());
  return std::move(engine).value();
}

// Clears what a test injected, however it ends.
struct FaultGuard {
  explicit FaultGuard(Fault fault) { SetFault(std::move(fault)); }
  ~FaultGuard() { ClearFault(); }
};

inline Fault FaultIn(const std::string& op, int error, int nth = 1, int times = 1) {
  Fault fault;
  fault.op = op;
  fault.error = error;
  fault.nth = nth;
  fault.times = times;
  return fault;
}

}  // namespace elastates

#endif  // ELASTATES_TESTS_CSRC_ENGINE_PARTS_H_
