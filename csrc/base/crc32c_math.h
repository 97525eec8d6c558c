// Arithmetic on polynomials over GF(2) modulo the CRC32C polynomial, all of it constexpr.
//
// Bits are reflected, as in the checksum itself: bit 31 is the coefficient of x^0, bit 0 that of x^31.
#ifndef ELASTATES_BASE_CRC32C_MATH_H_
#define ELASTATES_BASE_CRC32C_MATH_H_

#include <cstdint>

namespace elastates {
namespace crc32c {

constexpr uint32_t kPolynomial = 0x82F63B78;
constexpr uint32_t kOne = uint32_t{1} << 31;

constexpr uint32_t TimesX(uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? kPolynomial : 0); }

constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = TimesX(b);
  }
  return product;
}

constexpr uint32_t Power(uint32_t base, uint64_t exponent) {
  uint32_t result = kOne;
  for (; exponent != 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = Multiply(result, base);
    base = Multiply(base, base);
  }
  return result;
}

// x^num_bits.
constexpr uint32_t XToThe(uint64_t num_bits) { return Power(TimesX(kOne), num_bits); }

}  // namespace crc32c
}  // namespace elastates

#endif  // ELASTATES_BASE_CRC32C_MATH_H_
