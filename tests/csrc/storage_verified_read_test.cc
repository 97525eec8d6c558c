// ReadVerified: the bytes a plain read gives, damage named by extent, and failures told as what they are.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "base/crc32c.h"
#include "check.h"
#include "storage/verified_read.h"
#include "storage_files.h"

namespace elastates {
namespace {

using namespace testing;

// A file tiled by extents from `header_bytes` on, with random scatters into memory that is fenced on both
// sides.
struct Case {
  Case(const TempDir& dir, uint32_t seed, size_t size_bytes, size_t max_extent, size_t max_scatter)
      : path(dir.File("data-" + std::to_string(seed))), bytes(RandomBytes(size_bytes, seed)), random(seed) {
    WriteAll(path, bytes);
    const size_t header_bytes = std::min<size_t>(size_bytes, 4096);
    for (size_t at = header_bytes; at < size_bytes;) {
      const size_t end = std::min<size_t>(size_bytes, at + 1 + random() % max_extent);
      extents.push_back({at, end, Crc32c(bytes.data() + at, end - at)});
      at = end;
    }
    for (size_t at = header_bytes; at < size_bytes;) {
      const size_t begin = std::min<size_t>(size_bytes, at + (random() % 2 == 0 ? 0 : random() % 300));
      const size_t end = std::min<size_t>(size_bytes, begin + random() % max_scatter);
      scatters.push_back({begin, end, nullptr});
      at = end + 1;
    }
    Aim();
  }

  // Gives every scatter its place in `memory`: in reverse order, a fence byte between each two.
  void Aim() {
    size_t total = 1;
    for (const Scatter& scatter : scatters) total += scatter.end - scatter.begin + 1;
    memory.assign(total, '\x33');
    size_t at = 1;
    for (auto scatter = scatters.rbegin(); scatter != scatters.rend(); ++scatter) {
      scatter->dst = memory.data() + at;
      at += scatter->end - scatter->begin + 1;
    }
  }

  Result<ReadReport> Read(const ReadOptions& options = {}) {
    return ReadVerified(path, bytes.size(), extents, scatters, options);
  }

  void CheckMemory() const {
    CHECK_EQ(memory[0], '\x33');
    for (const Scatter& scatter : scatters) {
      const size_t size = scatter.end - scatter.begin;
      CHECK(std::memcmp(scatter.dst, bytes.data() + scatter.begin, size) == 0);
      CHECK_EQ(scatter.dst[size], '\x33');
    }
  }

  void FlipBit(uint64_t offset) {
    std::string damaged = bytes;
    damaged[offset] ^= static_cast<char>(1 << random() % 8);
    WriteAll(path, damaged);
  }

  size_t ExtentAt(uint64_t offset) const {
    return std::find_if(extents.begin(), extents.end(), [&](const ReadExtent& e) { return offset < e.end; }) -
           extents.begin();
  }

  std::string path;
  std::string bytes;
  std::mt19937 random;
  std::vector<ReadExtent> extents;
  std::vector<Scatter> scatters;
  std::string memory;
};

ReadOptions Options(int num_threads, size_t request_bytes, bool allow_direct = true, bool verify = true) {
  ReadOptions options;
  options.num_threads = num_threads;
  options.request_bytes = request_bytes;
  options.allow_direct = allow_direct;
  options.verify = verify;
  return options;
}

TEST(random_files_come_back_whole) {
  for (const std::string& parent : ParentDirectories()) {
    const TempDir dir(parent);
    for (uint32_t seed = 0; seed < 12; ++seed) {
      Case c(dir, seed, 300000 + seed * 77777, seed % 2 == 0 ? 5000 : 200000, seed % 3 == 0 ? 100 : 60000);
      for (const ReadOptions& options :
           {Options(1, 1), Options(3, 65536), Options(2, 8 << 20), Options(2, 65536, false),
            Options(2, 65536, true, false), Options(0, SIZE_MAX)}) {
        c.Aim();
        Result<ReadReport> report = c.Read(options);
        CHECK_OK(report.status());
        CHECK_EQ(report.value().damaged_extents.size(), 0u);
        c.CheckMemory();
      }
    }
  }
}

TEST(lengths_around_a_page) {
  const TempDir dir;
  for (size_t size : {0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 12288}) {
    Case c(dir, static_cast<uint32_t>(size), size, 1000, 1000);
    Result<ReadReport> report = c.Read();
    CHECK_OK(report.status());
    CHECK_EQ(report.value().damaged_extents.size(), 0u);
    c.CheckMemory();
  }
}

TEST(every_flipped_bit_is_found_and_its_extent_named) {
  const TempDir dir;
  Case c(dir, 1, 400000, 30000, 500);
  // One scatter over everything, so that every extent is needed.
  c.scatters = {{4096, c.bytes.size(), nullptr}};
  c.Aim();
  for (int i = 0; i < 60; ++i) {
    const uint64_t offset = 4096 + c.random() % (c.bytes.size() - 4096);
    c.FlipBit(offset);
    for (size_t request_bytes : {4096, 8 << 20}) {
      Result<ReadReport> report = c.Read(Options(2, request_bytes));
      CHECK_OK(report.status());
      CHECK_EQ(report.value().damaged_extents.size(), 1u);
      CHECK_EQ(report.value().damaged_extents[0], c.ExtentAt(offset));
    }
  }
}

TEST(damage_beside_the_scatters_of_a_needed_extent_is_found) {
  const TempDir dir;
  Case c(dir, 2, 200000, 50000, 10);
  c.scatters = {{c.extents[1].begin + 10, c.extents[1].begin + 20, nullptr}};
  c.Aim();
  c.FlipBit(c.extents[1].end - 1);
  CHECK(c.Read().value().damaged_extents == std::vector<size_t>{1});
}

TEST(several_damaged_extents_are_named_in_order) {
  const TempDir dir;
  Case c(dir, 3, 500000, 20000, 30000);
  c.scatters = {{4096, c.bytes.size(), nullptr}};
  c.Aim();
  std::vector<size_t> expected(c.extents.size());
  std::iota(expected.begin(), expected.end(), 0);
  for (ReadExtent& extent : c.extents) extent.crc ^= 1;
  CHECK(c.Read(Options(3, 8192)).value().damaged_extents == expected);
}

TEST(a_file_of_another_length_is_data_loss) {
  const TempDir dir;
  Case c(dir, 4, 100000, 10000, 10000);
  for (size_t size : {size_t{0}, size_t{99999}, size_t{100001}}) {
    std::filesystem::resize_file(c.path, size);
    const Status status = c.Read().status();
    CHECK_EQ(status.code(), StatusCode::kDataLoss);
    CHECK(status.message().find(c.path) != std::string::npos);
    CHECK(status.message().find("100000") != std::string::npos);
  }
}

TEST(a_file_that_ends_while_it_is_read_is_data_loss) {
  const TempDir dir;
  Case c(dir, 5, 100000, 10000, 10000);
  // Nothing more is read although the size was right: what a truncation between the two looks like.
  Fault ends;
  ends.op = "read";
  ends.nth = 2;
  ends.times = 1000;
  ends.end_of_file = true;
  const ScopedFault fault(ends);
  CHECK_EQ(c.Read(Options(1, 8192)).status().code(), StatusCode::kDataLoss);
}

TEST(hostile_lists_are_refused_before_any_read) {
  const TempDir dir;
  Case c(dir, 6, 50000, 10000, 10000);
  const ScopedFault fault(FailAt("open", 1, EIO, 1000));
  const auto code = [&](std::vector<ReadExtent> extents, std::vector<Scatter> scatters) {
    return ReadVerified(c.path, c.bytes.size(), extents, scatters).status().code();
  };
  char byte;
  CHECK_EQ(code({{0, 50001, 0}}, {}), StatusCode::kInvalidArgument);
  CHECK_EQ(code({{4096, UINT64_MAX, 0}}, {}), StatusCode::kInvalidArgument);
  CHECK_EQ(code({{0, 100, 0}}, {{99, 101, &byte}}), StatusCode::kInvalidArgument);
  CHECK_EQ(code({{0, 100, 0}, {50, 150, 0}}, {}), StatusCode::kInvalidArgument);
  CHECK_EQ(NumFaultsStruck(), 0);
}

TEST(interrupts_and_short_reads_are_overcome) {
  const TempDir dir;
  for (const Fault& injected :
       {FailAt("read", 1, EINTR, 3), ShortAt("read", 1, 4096, 5), ShortAt("read", 2, 777, 5),
        ShortAt("read", 1, 1 << 30, 3), FailAt("open", 1, EINTR, 2)}) {
    for (bool allow_direct : {true, false}) {
      Case c(dir, 7, 300000, 20000, 20000);
      const ScopedFault fault(injected);
      Result<ReadReport> report = c.Read(Options(2, 65536, allow_direct));
      CHECK_OK(report.status());
      CHECK_EQ(report.value().damaged_extents.size(), 0u);
      CHECK_GT(NumFaultsStruck(), 0);
      c.CheckMemory();
    }
  }
}

TEST(o_direct_refused_means_buffered) {
  const TempDir dir;
  Fault at_read = FailAt("read", 2, EINVAL, 1000);
  at_read.direct_only = true;
  for (const Fault& refusal : {at_read, FailAt("direct", 1, EINVAL)}) {
    Case c(dir, 8, 300000, 20000, 20000);
    const ScopedFault fault(refusal);
    CHECK_OK(c.Read(Options(2, 65536)).status());
    c.CheckMemory();
  }
}

TEST(a_failed_read_is_an_error_and_not_damage) {
  const TempDir dir;
  Case c(dir, 9, 300000, 20000, 20000);
  for (int nth : {1, 3}) {
    const ScopedFault fault(FailAt("read", nth, EIO));
    const Status status = c.Read(Options(3, 65536)).status();
    CHECK_EQ(status.sys_errno(), EIO);
    CHECK(status.message().find(c.path) != std::string::npos);
  }
  std::filesystem::remove(c.path);
  CHECK_EQ(c.Read().status().sys_errno(), ENOENT);
}

TEST(reads_no_more_than_it_needs) {
  const TempDir dir;
  Case c(dir, 10, 4 << 20, 100000, 10);
  c.scatters = {{c.extents[20].begin, c.extents[20].begin + 1, nullptr}};
  c.Aim();
  const uint64_t extent_bytes = c.extents[20].end - c.extents[20].begin;
  CHECK_LE(c.Read().value().bytes_read, extent_bytes + 2 * 4096);
  CHECK_EQ(c.Read(Options(1, 8 << 20, true, false)).value().bytes_read, 4096u);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
