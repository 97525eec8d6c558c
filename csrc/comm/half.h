// 16-bit floats and float32, in blocks: conversions with the processor's instructions where it has them.
#ifndef ELASTATES_COMM_HALF_H_
#define ELASTATES_COMM_HALF_H_

#include <cstddef>
#include <cstdint>

namespace elastates {

// Rounded to the nearest, ties to even; NaN stays NaN.
void FromBfloat16(const uint16_t* source, float* target, size_t count);
void ToBfloat16(const float* source, uint16_t* target, size_t count);
void FromFloat16(const uint16_t* source, float* target, size_t count);
void ToFloat16(const float* source, uint16_t* target, size_t count);

}  // namespace elastates

#endif  // ELASTATES_COMM_HALF_H_
