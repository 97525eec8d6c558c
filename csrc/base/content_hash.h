// ContentHash: a keyed fingerprint that tells whether bytes are those of an earlier time.
//
// Two different contents of one length, chosen without knowing the key, get the same digest with a
// probability of less than 2^-63 for up to 1 GiB, over the choice of the key. So a checksum that changed data
// could happen to share does not decide; a random key, new for every chain of checkpoints, does.
//
// Two halves with independent keys. Each half: blocks of 1 KiB through NH (Black, Halevi, Krawczyk, Krovetz,
// Rogaway, "UMAC: Fast and Secure Message Authentication", 1999, section 4), which collides with
// probability 2^-32; the blocks' results, two numbers of 32 bits each, are the coefficients of a polynomial
// over the integers modulo 2^61 - 1, evaluated at a secret point (Carter and Wegman): for n blocks at most
// 2n / 2^61. A half errs with at most 2^-32 + n / 2^60, both with its square. NH is one multiplication per 8
// bytes, which vector units do eight at a time.
//
// Digests live in memory and are compared within one process. Values, no thread-safety.
#ifndef ELASTATES_BASE_CONTENT_HASH_H_
#define ELASTATES_BASE_CONTENT_HASH_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace elastates {

constexpr size_t kHashBlockBytes = 1024;
constexpr size_t kHashBlockWords = kHashBlockBytes / sizeof(uint32_t);

struct ContentKey {
  static constexpr size_t kSizeBytes = 2 * (kHashBlockBytes + sizeof(uint64_t));

  // REQUIRES: `random` points at kSizeBytes uniformly random bytes.
  explicit ContentKey(const char* random);

  alignas(64) uint32_t words[2][kHashBlockWords];
  uint64_t points[2];  // below 2^61 - 1
};

using ContentDigest = std::array<uint64_t, 2>;

class ContentHash {
 public:
  // The key must outlive the hash.
  explicit ContentHash(const ContentKey& key) : key_(key) {}

  void Update(const char* data, size_t size_bytes);
  // Of everything since the construction. Digests of contents of different lengths say nothing.
  ContentDigest Finish();

 private:
  void AddBlock(const char* block);

  const ContentKey& key_;
  ContentDigest state_{0, 0};
  size_t pending_bytes_ = 0;
  char pending_[kHashBlockBytes];  // the begin of a block
};

// One way to take both NH sums of a block.
struct BlockSums {
  uint64_t half[2];
};
struct BlockHashVersion {
  const char* name;
  BlockSums (*run)(const ContentKey& key, const char* block);
};

// Every version that this CPU can run, fastest first: ContentHash uses the first one, tests compare them all.
const std::vector<BlockHashVersion>& BlockHashVersions();

}  // namespace elastates

#endif  // ELASTATES_BASE_CONTENT_HASH_H_
