// The keyed fingerprint: its versions agree, it equals its definition, and it sees every small change.

#include "base/content_hash.h"

#include <cstring>
#include <random>
#include <set>
#include <string>

#include "check.h"

namespace elastates {
namespace {

std::string RandomBytes(size_t size_bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size_bytes, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

ContentKey RandomKey(uint32_t seed = 1) {
  return ContentKey(RandomBytes(ContentKey::kSizeBytes, seed).data());
}

ContentDigest HashOf(const ContentKey& key, const std::string& bytes) {
  ContentHash hash(key);
  hash.Update(bytes.data(), bytes.size());
  return hash.Finish();
}

// The definition, word by word, in 128-bit arithmetic; nothing of it is shared with the implementation.
ContentDigest ReferenceDigest(const ContentKey& key, std::string bytes) {
  const unsigned __int128 prime = (static_cast<unsigned __int128>(1) << 61) - 1;
  bytes.resize((bytes.size() + 1023) / 1024 * 1024, '\0');
  ContentDigest digest{0, 0};
  for (int half = 0; half < 2; ++half) {
    unsigned __int128 state = 0;
    for (size_t block = 0; block < bytes.size(); block += 1024) {
      uint64_t sum = 0;
      for (size_t i = 0; i < 256; i += 2) {
        uint32_t pair[2];
        std::memcpy(pair, bytes.data() + block + 4 * i, 8);
        sum += uint64_t{static_cast<uint32_t>(pair[0] + key.words[half][i])} *
               static_cast<uint32_t>(pair[1] + key.words[half][i + 1]);
      }
      state = (state + (sum & 0xffffffff)) * key.points[half] % prime;
      state = (state + (sum >> 32)) * key.points[half] % prime;
    }
    digest[half] = static_cast<uint64_t>(state);
  }
  return digest;
}

TEST(equals_its_definition_at_every_kind_of_length) {
  const ContentKey key = RandomKey();
  for (size_t size : {0, 1, 7, 1023, 1024, 1025, 4096, 70001}) {
    const std::string bytes = RandomBytes(size, static_cast<uint32_t>(size));
    CHECK(HashOf(key, bytes) == ReferenceDigest(key, bytes));
  }
  const std::string ones(65536, '\xff');  // the largest coefficients
  CHECK(HashOf(key, ones) == ReferenceDigest(key, ones));
}

TEST(all_versions_sum_alike) {
  const std::string bytes = RandomBytes(1024 + 64, 3);
  for (uint32_t seed = 1; seed < 20; ++seed) {
    const ContentKey key = RandomKey(seed);
    for (size_t shift : {0, 1, 8, 63}) {
      const BlockSums expected = BlockHashVersions().back().run(key, bytes.data() + shift);
      for (const BlockHashVersion& version : BlockHashVersions()) {
        const BlockSums sums = version.run(key, bytes.data() + shift);
        CHECK(sums.half[0] == expected.half[0] && sums.half[1] == expected.half[1]);
      }
    }
  }
}

TEST(pieces_of_any_lengths_make_the_digest_of_the_whole) {
  const ContentKey key = RandomKey();
  const std::string bytes = RandomBytes(20000, 4);
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    ContentHash hash(key);
    for (size_t at = 0; at < bytes.size();) {
      const size_t size =
          std::min<size_t>(random() % 3 == 0 ? random() % 5000 : random() % 40, bytes.size() - at);
      hash.Update(bytes.data() + at, size);
      at += size;
    }
    CHECK(hash.Finish() == HashOf(key, bytes));
  }
}

TEST(every_flipped_bit_and_swapped_block_shows) {
  const ContentKey key = RandomKey();
  const std::string bytes = RandomBytes(4096, 6);
  std::set<ContentDigest> seen = {HashOf(key, bytes)};
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string changed = bytes;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    CHECK(seen.insert(HashOf(key, changed)).second);
  }
  CHECK(
      seen.insert(HashOf(key, bytes.substr(1024, 1024) + bytes.substr(0, 1024) + bytes.substr(2048))).second);
  CHECK(seen.insert(HashOf(key, std::string(4096, '\0'))).second);
}

TEST(another_key_gives_another_digest) {
  const std::string bytes = RandomBytes(4096, 7);
  std::set<ContentDigest> seen;
  for (uint32_t seed = 1; seed < 100; ++seed) CHECK(seen.insert(HashOf(RandomKey(seed), bytes)).second);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
