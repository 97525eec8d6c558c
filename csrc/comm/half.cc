#include "comm/half.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace elastates {
namespace {

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits.
float Float16ToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00) return FloatOf(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return FloatOf(sign | ((magnitude << 13) + (112u << 23)));
  return FloatOf(sign |
                 BitsOf(static_cast<float>(magnitude) * 0x1p-24f));  // subnormal: an integer times 2^-24
}

uint16_t FloatToFloat16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {                       // below 2^-14: a multiple of 2^-24
    return sign | static_cast<uint16_t>(std::nearbyintf(FloatOf(magnitude) * 0x1p24f));
  }
  const uint32_t rebased = magnitude - (112u << 23);
  return sign | static_cast<uint16_t>((rebased + 0xfff + (rebased >> 13 & 1)) >> 13);
}

#if defined(__x86_64__)
bool HasF16c() {
  static const bool has = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  return has;
}

// Each converts whole groups of eight and returns how many elements that were.
__attribute__((target("avx,f16c"))) size_t FromFloat16Eights(const uint16_t* source, float* target,
                                                             size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
  }
  return i;
}

__attribute__((target("avx,f16c"))) size_t ToFloat16Eights(const float* source, uint16_t* target,
                                                           size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), halves);
  }
  return i;
}
#endif

}  // namespace

void FromBfloat16(const uint16_t* source, float* target, size_t count) {
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) target[i] = FloatOf(uint32_t{source[i]} << 16);
}

void ToBfloat16(const float* source, uint16_t* target, size_t count) {
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = BitsOf(source[i]);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    target[i] = static_cast<uint16_t>(is_nan ? (bits >> 16 | 0x40) : rounded);
  }
}

void FromFloat16(const uint16_t* source, float* target, size_t count) {
  size_t i = 0;
#if defined(__x86_64__)
  if (HasF16c()) i = FromFloat16Eights(source, target, count);
#endif
  for (; i < count; ++i) target[i] = Float16ToFloat(source[i]);
}

void ToFloat16(const float* source, uint16_t* target, size_t count) {
  size_t i = 0;
#if defined(__x86_64__)
  if (HasF16c()) i = ToFloat16Eights(source, target, count);
#endif
  for (; i < count; ++i) target[i] = FloatToFloat16(source[i]);
}

}  // namespace elastates
