// What the storage tests share: a directory of their own, aligned buffers, plain reads, faults that end with
// a scope.
#ifndef ELASTATES_TESTS_CSRC_STORAGE_FILES_H_
#define ELASTATES_TESTS_CSRC_STORAGE_FILES_H_

#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "storage/fault.h"

namespace elastates {
namespace testing {

class TempDir {
 public:
  explicit TempDir(const std::string& parent = std::filesystem::temp_directory_path()) {
    path_ = parent + "/elastates-test-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) path_.clear();
    CHECK(!path_.empty());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Where O_DIRECT usually works, and where files are memory.
inline std::vector<std::string> ParentDirectories() {
  std::vector<std::string> parents = {std::filesystem::temp_directory_path().string()};
  if (std::filesystem::is_directory("/dev/shm")) parents.push_back("/dev/shm");
  return parents;
}

struct FreeBuffer {
  void operator()(char* data) const { std::free(data); }
};
using AlignedBuffer = std::unique_ptr<char, FreeBuffer>;

// `bytes` at an address aligned to 4096, with room up to the next multiple.
inline AlignedBuffer Aligned(const std::string& bytes) {
  const size_t room = bytes.size() / 4096 * 4096 + 4096;
  AlignedBuffer buffer(static_cast<char*>(std::aligned_alloc(4096, room)));
  std::memset(buffer.get(), 0x77, room);
  std::memcpy(buffer.get(), bytes.data(), bytes.size());
  return buffer;
}

inline std::string RandomBytes(size_t size_bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size_bytes, 0);
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

inline std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void WriteAll(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// Injects a fault while it lives.
class ScopedFault {
 public:
  explicit ScopedFault(Fault fault) { SetFault(std::move(fault)); }
  ~ScopedFault() { ClearFault(); }
};

inline Fault FailAt(const char* op, int nth, int error, int times = 1) {
  Fault fault;
  fault.op = op;
  fault.nth = nth;
  fault.error = error;
  fault.times = times;
  return fault;
}

inline Fault ShortAt(const char* op, int nth, size_t short_by, int times = 1) {
  Fault fault;
  fault.op = op;
  fault.nth = nth;
  fault.short_by = short_by;
  fault.times = times;
  return fault;
}

}  // namespace testing
}  // namespace elastates

#endif  // ELASTATES_TESTS_CSRC_STORAGE_FILES_H_
