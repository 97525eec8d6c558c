// Reductions of every type against the same arithmetic in double or in wide integers; 16-bit floats bit by
// bit.
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "comm/half.h"
#include "comm/reduce.h"

namespace elastates {
namespace {

constexpr size_t kCount = 2051;  // blocks, vectors and a rest
constexpr ReduceKind kOfNumbers[] = {ReduceKind::kSum, ReduceKind::kProduct, ReduceKind::kMin,
                                     ReduceKind::kMax};

template <typename T>
T Expected(ReduceKind kind, T a, T b) {
  if (kind == ReduceKind::kMin) return std::min(a, b);
  if (kind == ReduceKind::kMax) return std::max(a, b);
  return kind == ReduceKind::kSum ? static_cast<T>(a + b) : static_cast<T>(a * b);
}

template <typename T>
void CheckNumbers(DataType type) {
  CHECK_EQ(SizeOf(type), sizeof(T));
  std::vector<T> a(kCount), b(kCount), target(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    a[i] = static_cast<T>(i % 13);
    b[i] = static_cast<T>(i % 7 + 1);
  }
  for (ReduceKind kind : kOfNumbers) {
    CHECK_OK(CheckReduction(type, {kind, 1}));
    Combine(type, kind, target.data(), a.data(), b.data(), kCount);
    for (size_t i = 0; i < kCount; ++i) CHECK_EQ(target[i], Expected(kind, a[i], b[i]));
    std::vector<T> in_place = b;
    Combine(type, kind, in_place.data(), a.data(), in_place.data(), kCount);
    CHECK(in_place == target);
    const void* sources[] = {a.data(), b.data(), a.data()};
    CombineAll(type, kind, in_place.data(), sources, 3, kCount);
    for (size_t i = 0; i < kCount; ++i) CHECK_EQ(in_place[i], Expected(kind, target[i], a[i]));
  }
}

TEST(numbers) {
  CheckNumbers<double>(DataType::kFloat64);
  CheckNumbers<float>(DataType::kFloat32);
  CheckNumbers<int8_t>(DataType::kInt8);
  CheckNumbers<int16_t>(DataType::kInt16);
  CheckNumbers<int32_t>(DataType::kInt32);
  CheckNumbers<int64_t>(DataType::kInt64);
  CheckNumbers<uint8_t>(DataType::kUint8);
  CheckNumbers<uint16_t>(DataType::kUint16);
  CheckNumbers<uint32_t>(DataType::kUint32);
  CheckNumbers<uint64_t>(DataType::kUint64);
}

TEST(integers_wrap_around_and_have_bits) {
  const int32_t big = std::numeric_limits<int32_t>::max(), one = 1;
  int32_t sum = 0;
  Combine(DataType::kInt32, ReduceKind::kSum, &sum, &big, &one, 1);
  CHECK_EQ(sum, std::numeric_limits<int32_t>::min());
  const uint16_t high = 65535;
  uint16_t product = 0;
  Combine(DataType::kUint16, ReduceKind::kProduct, &product, &high, &high, 1);
  CHECK_EQ(product, 1);
  const uint8_t a = 0b1100, b = 0b1010;
  uint8_t bits = 0;
  Combine(DataType::kUint8, ReduceKind::kBand, &bits, &a, &b, 1);
  CHECK_EQ(int{bits}, 0b1000);
  Combine(DataType::kUint8, ReduceKind::kBor, &bits, &a, &b, 1);
  CHECK_EQ(int{bits}, 0b1110);
  Combine(DataType::kUint8, ReduceKind::kBxor, &bits, &a, &b, 1);
  CHECK_EQ(int{bits}, 0b0110);
}

TEST(booleans_stay_booleans) {
  const uint8_t a[] = {0, 0, 1, 1}, b[] = {0, 1, 0, 1};
  uint8_t target[4];
  Combine(DataType::kBool, ReduceKind::kSum, target, a, b, 4);
  CHECK(std::memcmp(target, "\0\1\1\1", 4) == 0);
  Combine(DataType::kBool, ReduceKind::kProduct, target, a, b, 4);
  CHECK(std::memcmp(target, "\0\0\0\1", 4) == 0);
  Combine(DataType::kBool, ReduceKind::kBxor, target, a, b, 4);
  CHECK(std::memcmp(target, "\0\1\1\0", 4) == 0);
}

TEST(complex_numbers) {
  const std::complex<float> a(1, 2), b(3, -1);
  std::complex<float> target;
  Combine(DataType::kComplex64, ReduceKind::kSum, &target, &a, &b, 1);
  CHECK(target == a + b);
  Combine(DataType::kComplex64, ReduceKind::kProduct, &target, &a, &b, 1);
  CHECK(target == a * b);
}

TEST(there_is_not_every_reduction_of_every_type) {
  CHECK_EQ(CheckReduction(DataType::kComplex64, {ReduceKind::kMax, 1}).message(),
           "there is no reduction max of complex64");
  CHECK(!CheckReduction(DataType::kFloat16, {ReduceKind::kBor, 1}).ok());
  CHECK(!CheckReduction(DataType::kBool, {ReduceKind::kAvg, 1}).ok());
  CHECK(!CheckReduction(DataType::kInt32, {ReduceKind::kPremulSum, 2}).ok());
}

TEST(averages_and_factors) {
  int8_t bytes[] = {100, -100, 7};
  Conclude(DataType::kInt8, {ReduceKind::kAvg, 1}, bytes, 3, 3);
  CHECK_EQ(int{bytes[0]}, 33);
  CHECK_EQ(int{bytes[1]}, -33);
  Conclude(DataType::kInt8, {ReduceKind::kAvg, 1}, bytes, 3, 200);
  CHECK_EQ(int{bytes[0]}, 0);
  const float values[] = {1, 2};
  float scaled[2];
  Prepare(DataType::kFloat32, {ReduceKind::kPremulSum, 0.5}, scaled, values, 2);
  CHECK_EQ(scaled[1], 1.0f);
  Conclude(DataType::kFloat32, {ReduceKind::kSum, 1}, scaled, 2, 7);
  CHECK_EQ(scaled[1], 1.0f);
}

TEST(what_is_no_number_comes_through_minima_and_maxima) {
  const float number[] = {1}, none[] = {std::nanf("")};
  for (ReduceKind kind : {ReduceKind::kMin, ReduceKind::kMax}) {
    float result[1];
    Combine(DataType::kFloat32, kind, result, number, none, 1);
    CHECK(std::isnan(result[0]));
    Combine(DataType::kFloat32, kind, result, none, number, 1);
    CHECK(std::isnan(result[0]));
  }
}

TEST(every_float16_goes_to_float32_and_back) {
  std::vector<uint16_t> halves(65536), back(65536);
  std::vector<float> floats(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  FromFloat16(halves.data(), floats.data(), halves.size());
  ToFloat16(floats.data(), back.data(), floats.size());
  for (size_t i = 0; i < halves.size(); ++i) {
    const bool is_nan = (i & 0x7fff) > 0x7c00;
    CHECK(is_nan ? std::isnan(floats[i]) && (back[i] & 0x7fff) > 0x7c00 : back[i] == halves[i]);
    // One at a time takes the portable way, eight the processor's.
    float alone;
    FromFloat16(&halves[i], &alone, 1);
    uint16_t alone_back;
    ToFloat16(&alone, &alone_back, 1);
    CHECK(is_nan ? std::isnan(alone) : alone == floats[i] && alone_back == halves[i]);
  }
}

TEST(float16_rounds_to_the_nearest_even) {
  const float values[] = {1 + 0x1p-11f, 1 + 3 * 0x1p-11f, 65519.0f, 65520.0f,
                          0x1p-25f,     0x1.8p-24f,       -0.0f,    0x1.ffep-15f};
  const uint16_t expected[] = {0x3c00, 0x3c02, 0x7bff, 0x7c00, 0x0000, 0x0002, 0x8000, 0x0400};
  uint16_t together[8];
  ToFloat16(values, together, 8);
  for (int i = 0; i < 8; ++i) {
    uint16_t alone;
    ToFloat16(&values[i], &alone, 1);
    CHECK_EQ(alone, expected[i]);
    CHECK_EQ(together[i], expected[i]);
  }
}

TEST(bfloat16_is_summed_as_float32_and_rounded_once) {
  const std::vector<uint16_t> one(kCount, 0x3f80), tiny(kCount, 0x3b80);  // 1 and 2^-8
  std::vector<uint16_t> target(kCount);
  const void* sources[] = {one.data(), tiny.data(), tiny.data()};
  CombineAll(DataType::kBfloat16, ReduceKind::kSum, target.data(), sources, 3, kCount);
  for (uint16_t bits : target) CHECK_EQ(bits, 0x3f81);  // 1 + 2^-7; rounded twice it would be 1
  const float not_a_number = std::numeric_limits<float>::quiet_NaN();
  uint16_t bits;
  ToBfloat16(&not_a_number, &bits, 1);
  CHECK(bits == 0x7fc0);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
