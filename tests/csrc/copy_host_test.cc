// CopyAndCrc32c: the right bytes at the right place, none beside it, and the checksum of a bitwise reference.
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "check.h"
#include "copy/host_copy.h"

namespace elastates {
namespace {

constexpr char kFence = '\x5A';

std::string RandomBytes(size_t size_bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size_bytes, 0);
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

uint32_t BitwiseCrc(const std::string& bytes, uint32_t seed) {
  uint32_t state = ~seed;
  for (char byte : bytes) {
    state ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) state = (state & 1) != 0 ? (state >> 1) ^ 0x82F63B78u : state >> 1;
  }
  return ~state;
}

// Copies src[begin, begin + size) to `dst_offset` of a fenced buffer and looks at everything that can be
// wrong.
void CheckCopy(const CopyVersion& version, const std::string& src, size_t begin, size_t size,
               size_t dst_offset) {
  std::string dst(dst_offset + size + 128, kFence);
  const uint32_t seed = static_cast<uint32_t>(begin * 31 + size);
  const uint32_t crc = version.run(dst.data() + dst_offset, src.data() + begin, size, seed);
  CHECK_EQ(crc, BitwiseCrc(src.substr(begin, size), seed));
  CHECK(dst.compare(dst_offset, size, src, begin, size) == 0);
  CHECK(dst.compare(0, dst_offset, std::string(dst_offset, kFence)) == 0);
  CHECK(dst.compare(dst_offset + size, 128, std::string(128, kFence)) == 0);
}

TEST(the_chosen_version_is_the_first) {
  const std::string src = RandomBytes(5000, 1);
  std::string dst(5000, 0);
  CHECK_EQ(CopyAndCrc32c(dst.data(), src.data(), 5000),
           CopyVersions().front().run(dst.data(), src.data(), 5000, 0));
  CHECK_EQ(CopyAndCrc32c(dst.data(), src.data(), 5000), Crc32c(src.data(), 5000));
}

TEST(small_sizes) {
  const std::string src = RandomBytes(1024, 2);
  for (const CopyVersion& version : CopyVersions()) {
    for (size_t size = 0; size < 600; size += 7) CheckCopy(version, src, size % 9, size, size % 67);
  }
}

TEST(every_alignment_of_the_destination) {
  const std::string src = RandomBytes(6000, 3);
  for (const CopyVersion& version : CopyVersions()) {
    for (size_t offset = 0; offset < 64; ++offset)
      CheckCopy(version, src, offset % 13, 4096 + offset * 3, offset);
  }
}

TEST(random_sizes_and_alignments) {
  const std::string src = RandomBytes(80000, 4);
  std::mt19937 random(5);
  for (int i = 0; i < 150; ++i) {
    const size_t begin = random() % 4096;
    const size_t size = random() % (src.size() - begin);
    for (const CopyVersion& version : CopyVersions()) CheckCopy(version, src, begin, size, random() % 200);
  }
}

TEST(sizes_around_the_borders_between_strategies) {
  const std::string src = RandomBytes(40000, 6);
  for (const CopyVersion& version : CopyVersions()) {
    for (size_t border : {256, 4096, 4352, 12288, 16384, 36864}) {
      for (int delta = -2; delta <= 2; ++delta) CheckCopy(version, src, 1, border + delta, 3);
    }
  }
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
