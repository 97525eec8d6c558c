// The x86 kernels of CRC32C, shared by the checksum (base/) and by the checksummed copy (copy/).
//
// They work on the raw register (~crc). Callers ask CpuHas...() first; nothing here runs by itself.
#ifndef ELASTATES_BASE_CRC32C_X86_H_
#define ELASTATES_BASE_CRC32C_X86_H_

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/crc32c_math.h"

#define ELASTATES_TARGET_SSE42 __attribute__((target("sse4.2,pclmul")))
#define ELASTATES_TARGET_AVX512 __attribute__((target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")))

namespace elastates {
namespace crc32c {

inline bool CpuHasSse42() { return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"); }

inline bool CpuHasAvx512Clmul() {
  return CpuHasSse42() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("vpclmulqdq");
}

inline uint64_t LoadU64(const char* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

// One crc32 instruction after the other: 8 bytes in 3 cycles. For heads and tails.
ELASTATES_TARGET_SSE42 inline uint32_t ExtendSerial(uint32_t state, const char* data, size_t size_bytes) {
  uint64_t wide = state;
  for (; size_bytes >= 8; data += 8, size_bytes -= 8) wide = _mm_crc32_u64(wide, LoadU64(data));
  state = static_cast<uint32_t>(wide);
  for (; size_bytes > 0; ++data, --size_bytes) state = _mm_crc32_u8(state, static_cast<uint8_t>(*data));
  return state;
}

// The register after `kShiftBytes` zero bytes. The carry-less product is one x short of reflected alignment
// and the crc32 instruction multiplies by another x^32, hence the 33.
template <size_t kShiftBytes>
ELASTATES_TARGET_SSE42 inline uint32_t ShiftBy(uint32_t state) {
  constexpr uint32_t kFactor = XToThe(8 * kShiftBytes - 33);
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128(static_cast<int>(state)),
                                               _mm_cvtsi32_si128(static_cast<int>(kFactor)), 0);
  return static_cast<uint32_t>(_mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product))));
}

// Three independent chains hide the latency of the instruction: 8 bytes a cycle.
ELASTATES_TARGET_SSE42 inline uint32_t ExtendSse42(uint32_t state, const char* data, size_t size_bytes) {
  constexpr size_t kLane = 1024;
  for (; size_bytes >= 3 * kLane; data += 3 * kLane, size_bytes -= 3 * kLane) {
    uint64_t a = state, b = 0, c = 0;
    for (size_t i = 0; i < kLane; i += 8) {
      a = _mm_crc32_u64(a, LoadU64(data + i));
      b = _mm_crc32_u64(b, LoadU64(data + kLane + i));
      c = _mm_crc32_u64(c, LoadU64(data + 2 * kLane + i));
    }
    state = ShiftBy<kLane>(ShiftBy<kLane>(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^
            static_cast<uint32_t>(c);
  }
  return ExtendSerial(state, data, size_bytes);
}

constexpr size_t kFoldBytes =
    256;  // four registers of 64 bytes: enough chains to hide the multiplier's latency

// Each 128-bit lane, moved kFoldBytes further into the message and added to the bytes found there.
// Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel 2009.
ELASTATES_TARGET_AVX512 inline __m512i Fold(__m512i lanes, __m512i factors, __m512i next) {
  const __m512i low = _mm512_clmulepi64_epi128(lanes, factors, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(lanes, factors, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // exclusive or of three
}

// Loads the 64 bytes at src + at; where kCopy, streams them past the caches to dst + at as well.
template <bool kCopy>
ELASTATES_TARGET_AVX512 inline __m512i LoadAndStream(char* dst, const char* src, size_t at) {
  const __m512i bytes = _mm512_loadu_si512(src + at);
  if constexpr (kCopy) _mm512_stream_si512(reinterpret_cast<__m512i*>(dst + at), bytes);
  return bytes;
}

// Checksums, and where kCopy copies, `size_bytes`: a multiple of kFoldBytes, not 0; `dst` aligned to 64
// (unused without kCopy). What is left after folding is a message of kFoldBytes with the same remainder.
template <bool kCopy>
ELASTATES_TARGET_AVX512 inline uint32_t ExtendAvx512(uint32_t state, char* dst, const char* src,
                                                     size_t size_bytes) {
  constexpr uint64_t kLow = uint64_t{XToThe(8 * kFoldBytes + 32)} << 1;
  constexpr uint64_t kHigh = uint64_t{XToThe(8 * kFoldBytes - 32)} << 1;
  const __m512i factors = _mm512_set_epi64(kHigh, kLow, kHigh, kLow, kHigh, kLow, kHigh, kLow);

  __m512i a = LoadAndStream<kCopy>(dst, src, 0);
  __m512i b = LoadAndStream<kCopy>(dst, src, 64);
  __m512i c = LoadAndStream<kCopy>(dst, src, 128);
  __m512i d = LoadAndStream<kCopy>(dst, src, 192);
  a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state))));
  for (size_t at = kFoldBytes; at < size_bytes; at += kFoldBytes) {
    a = Fold(a, factors, LoadAndStream<kCopy>(dst, src, at));
    b = Fold(b, factors, LoadAndStream<kCopy>(dst, src, at + 64));
    c = Fold(c, factors, LoadAndStream<kCopy>(dst, src, at + 128));
    d = Fold(d, factors, LoadAndStream<kCopy>(dst, src, at + 192));
  }
  alignas(64) char folded[kFoldBytes];
  _mm512_store_si512(folded, a);
  _mm512_store_si512(folded + 64, b);
  _mm512_store_si512(folded + 128, c);
  _mm512_store_si512(folded + 192, d);
  return ExtendSerial(0, folded, kFoldBytes);
}

}  // namespace crc32c
}  // namespace elastates

#endif  // defined(__x86_64__)

#endif  // ELASTATES_BASE_CRC32C_X86_H_
