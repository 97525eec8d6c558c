// Element by element arithmetic of reductions. Pure functions; 16-bit floats are computed as float32.
#ifndef ELASTATES_COMM_REDUCE_H_
#define ELASTATES_COMM_REDUCE_H_

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace elastates {

enum class DataType : uint8_t {
  kFloat64,
  kFloat32,
  kFloat16,
  kBfloat16,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kBool,  // one byte, 0 or 1; sums and maxima are "or", products and minima "and"
  kComplex64,
  kComplex128,
};

enum class ReduceKind : uint8_t { kSum, kAvg, kProduct, kMin, kMax, kBand, kBor, kBxor, kPremulSum };

struct Reduction {
  ReduceKind kind = ReduceKind::kSum;
  double factor = 1;  // of kPremulSum: each member's own, applied to its input
};

size_t SizeOf(DataType type);
const char* NameOf(DataType type);
const char* NameOf(ReduceKind kind);

// kInvalidArgument if there is no such reduction of the type: bits of floats, the order of complex numbers.
Status CheckReduction(DataType type, const Reduction& reduction);

// The three steps of a reduction, each over `count` elements and REQUIRES: CheckReduction() is ok.
//
// What a member's input counts for: `target` = `source`, times the factor of kPremulSum. They may be the
// same.
void Prepare(DataType type, const Reduction& reduction, void* target, const void* source, size_t count);
// `target` = `a` combined with `b`; it may be either of them. Commutative, so that every member gets the
// same.
void Combine(DataType type, ReduceKind kind, void* target, const void* a, const void* b, size_t count);
// What is left when all is combined: the division of kAvg by the number of members, in place.
void Conclude(DataType type, const Reduction& reduction, void* data, size_t count, int num_members);

// `target` = all of `num_sources` sources combined in their order, reading each of them once; 16-bit floats
// are rounded once, at the end. It may be one of them. REQUIRES: num_sources > 0.
void CombineAll(DataType type, ReduceKind kind, void* target, const void* const* sources, int num_sources,
                size_t count);

}  // namespace elastates

#endif  // ELASTATES_COMM_REDUCE_H_
