#include "base/content_hash.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace elastates {
namespace {

constexpr uint64_t kPrime = (uint64_t{1} << 61) - 1;

uint64_t MultiplyModPrime(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  const uint64_t sum = (static_cast<uint64_t>(product) & kPrime) + static_cast<uint64_t>(product >> 61);
  return sum >= kPrime ? sum - kPrime : sum;
}

// REQUIRES: state and point are below the prime.
uint64_t HornerStep(uint64_t state, uint32_t coefficient, uint64_t point) {
  const uint64_t sum = state + coefficient;
  return MultiplyModPrime(sum >= kPrime ? sum - kPrime : sum, point);
}

uint32_t LoadU32(const char* data) {
  uint32_t word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

BlockSums SumPlain(const ContentKey& key, const char* block) {
  BlockSums sums{{0, 0}};
  for (int half = 0; half < 2; ++half) {
    const uint32_t* words = key.words[half];
    for (size_t i = 0; i < kHashBlockWords; i += 2) {
      const uint64_t even = LoadU32(block + i * sizeof(uint32_t)) + words[i];  // modulo 2^32, then widened
      const uint64_t odd = LoadU32(block + (i + 1) * sizeof(uint32_t)) + words[i + 1];
      sums.half[half] += even * odd;
    }
  }
  return sums;
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) uint64_t SumLanes(__m256i lanes) {
  alignas(32) uint64_t parts[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(parts), lanes);
  return std::accumulate(parts, parts + 4, uint64_t{0});
}

__attribute__((target("avx2"))) __m256i NhStep(__m256i bytes, const uint32_t* words, __m256i sum) {
  const __m256i keyed = _mm256_add_epi32(bytes, _mm256_load_si256(reinterpret_cast<const __m256i*>(words)));
  return _mm256_add_epi64(sum, _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32)));
}

__attribute__((target("avx2"))) BlockSums SumAvx2(const ContentKey& key, const char* block) {
  __m256i first = _mm256_setzero_si256(), second = first;
  for (size_t i = 0; i < kHashBlockWords; i += 8) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + i * sizeof(uint32_t)));
    first = NhStep(bytes, key.words[0] + i, first);
    second = NhStep(bytes, key.words[1] + i, second);
  }
  return {{SumLanes(first), SumLanes(second)}};
}

__attribute__((target("avx512f"))) uint64_t SumLanes(__m512i lanes) {
  alignas(64) uint64_t parts[8];
  _mm512_store_si512(parts, lanes);
  return std::accumulate(parts, parts + 8, uint64_t{0});
}

__attribute__((target("avx512f"))) __m512i NhStep(__m512i bytes, const uint32_t* words, __m512i sum) {
  const __m512i keyed = _mm512_add_epi32(bytes, _mm512_load_si512(words));
  // In the masked forms, all lanes on: GCC 12 takes the plain ones for reads of something uninitialized.
  const __m512i odd = _mm512_maskz_srli_epi64(0xff, keyed, 32);
  return _mm512_add_epi64(sum, _mm512_maskz_mul_epu32(0xff, keyed, odd));
}

__attribute__((target("avx512f"))) BlockSums SumAvx512(const ContentKey& key, const char* block) {
  __m512i first = _mm512_setzero_si512(), second = first;
  for (size_t i = 0; i < kHashBlockWords; i += 16) {
    const __m512i bytes = _mm512_loadu_si512(block + i * sizeof(uint32_t));
    first = NhStep(bytes, key.words[0] + i, first);
    second = NhStep(bytes, key.words[1] + i, second);
  }
  return {{SumLanes(first), SumLanes(second)}};
}

void AddFastVersions(std::vector<BlockHashVersion>* versions) {
  if (__builtin_cpu_supports("avx512f")) versions->push_back({"avx512", SumAvx512});
  if (__builtin_cpu_supports("avx2")) versions->push_back({"avx2", SumAvx2});
}

#else

void AddFastVersions(std::vector<BlockHashVersion>*) {}

#endif

std::vector<BlockHashVersion> MakeVersions() {
  std::vector<BlockHashVersion> versions;
  AddFastVersions(&versions);
  versions.push_back({"plain", SumPlain});
  return versions;
}

}  // namespace

ContentKey::ContentKey(const char* random) {
  std::memcpy(words, random, sizeof(words));
  std::memcpy(points, random + sizeof(words), sizeof(points));
  for (uint64_t& point : points) point %= kPrime;
}

void ContentHash::Update(const char* data, size_t size_bytes) {
  if (pending_bytes_ > 0) {
    const size_t taken = std::min(size_bytes, kHashBlockBytes - pending_bytes_);
    std::memcpy(pending_ + pending_bytes_, data, taken);
    pending_bytes_ += taken;
    data += taken;
    size_bytes -= taken;
    if (pending_bytes_ < kHashBlockBytes) return;
    AddBlock(pending_);
    pending_bytes_ = 0;
  }
  for (; size_bytes >= kHashBlockBytes; data += kHashBlockBytes, size_bytes -= kHashBlockBytes)
    AddBlock(data);
  if (size_bytes > 0) std::memcpy(pending_, data, size_bytes);
  pending_bytes_ = size_bytes;
}

ContentDigest ContentHash::Finish() {
  if (pending_bytes_ > 0) {
    std::memset(pending_ + pending_bytes_, 0, kHashBlockBytes - pending_bytes_);
    AddBlock(pending_);
    pending_bytes_ = 0;
  }
  return state_;
}

void ContentHash::AddBlock(const char* block) {
  static const auto fastest = BlockHashVersions().front().run;
  const BlockSums sums = fastest(key_, block);
  for (int half = 0; half < 2; ++half) {
    uint64_t state = state_[half];
    state = HornerStep(state, static_cast<uint32_t>(sums.half[half]), key_.points[half]);
    state_[half] = HornerStep(state, static_cast<uint32_t>(sums.half[half] >> 32), key_.points[half]);
  }
}

const std::vector<BlockHashVersion>& BlockHashVersions() {
  static const std::vector<BlockHashVersion> versions = MakeVersions();
  return versions;
}

}  // namespace elastates
