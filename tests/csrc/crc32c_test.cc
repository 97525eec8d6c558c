// CRC32C against published vectors, and every version against a bitwise reference.
#include "base/crc32c.h"

#include <random>
#include <string>
#include <vector>

#include "check.h"

namespace elastates {
namespace {

// The definition, one bit at a time; shares nothing with the code under test.
uint32_t BitwiseCrc(const unsigned char* data, size_t size_bytes, uint32_t seed = 0) {
  uint32_t state = ~seed;
  for (size_t i = 0; i < size_bytes; ++i) {
    state ^= data[i];
    for (int bit = 0; bit < 8; ++bit) state = (state & 1) != 0 ? (state >> 1) ^ 0x82F63B78u : state >> 1;
  }
  return ~state;
}

std::vector<unsigned char> RandomBytes(size_t size_bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<unsigned char> bytes(size_bytes);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
  return bytes;
}

TEST(known_vectors) {  // RFC 3720, appendix B.4
  std::vector<unsigned char> bytes(32, 0);
  for (const Crc32cVersion& version : Crc32cVersions()) {
    CHECK_EQ(version.run("123456789", 9, 0), 0xE3069283u);
    CHECK_EQ(version.run(bytes.data(), 32, 0), 0x8A9136AAu);
    CHECK_EQ(version.run(std::string(32, '\xFF').data(), 32, 0), 0x62A8AB43u);
    CHECK_EQ(version.run(nullptr, 0, 0), 0u);
  }
}

TEST(every_version_agrees_with_the_definition_at_every_small_size) {
  const auto bytes = RandomBytes(1200, 1);
  for (size_t size = 0; size < 1200; ++size) {
    const uint32_t expected = BitwiseCrc(bytes.data(), size, 0x12345678);
    for (const Crc32cVersion& version : Crc32cVersions()) {
      CHECK_EQ(version.run(bytes.data(), size, 0x12345678), expected);
    }
  }
}

TEST(every_version_agrees_at_random_sizes_and_alignments) {
  const auto bytes = RandomBytes(1 << 16, 2);
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    const size_t begin = random() % 256;
    const size_t size = random() % (bytes.size() - begin);
    const uint32_t seed = random();
    const uint32_t expected = BitwiseCrc(bytes.data() + begin, size, seed);
    for (const Crc32cVersion& version : Crc32cVersions()) {
      CHECK_EQ(version.run(bytes.data() + begin, size, seed), expected);
    }
  }
}

TEST(a_seed_continues_a_checksum) {
  const auto bytes = RandomBytes(10000, 4);
  for (size_t cut : {0, 1, 255, 256, 4096, 9999, 10000}) {
    const uint32_t head = Crc32c(bytes.data(), cut);
    CHECK_EQ(Crc32c(bytes.data() + cut, bytes.size() - cut, head), Crc32c(bytes.data(), bytes.size()));
  }
}

TEST(combine_agrees_with_concatenation) {
  const auto bytes = RandomBytes(5000, 5);
  std::mt19937 random(6);
  for (int i = 0; i < 200; ++i) {
    const size_t cut = random() % bytes.size();
    const uint32_t a = Crc32c(bytes.data(), cut);
    const uint32_t b = Crc32c(bytes.data() + cut, bytes.size() - cut);
    CHECK_EQ(Crc32cCombine(a, b, bytes.size() - cut), BitwiseCrc(bytes.data(), bytes.size()));
  }
}

TEST(combine_is_associative_at_lengths_no_buffer_has) {
  constexpr uint64_t kLong = uint64_t{3} << 60;
  const uint32_t left = Crc32cCombine(Crc32cCombine(1, 2, kLong), 3, 12345);
  const uint32_t right = Crc32cCombine(1, Crc32cCombine(2, 3, 12345), kLong + 12345);
  CHECK_EQ(left, right);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
