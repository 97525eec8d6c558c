#include "comm/reduce.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <string>
#include <type_traits>

#include "comm/half.h"

namespace elastates {
namespace {

constexpr size_t kBlock = 1024;  // elements that stay in the first-level cache between two steps

struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};
struct Bool {
  uint8_t value;
};

template <typename T>
constexpr bool kIsHalf = std::is_same_v<T, Float16> || std::is_same_v<T, Bfloat16>;
template <typename T>
constexpr bool kIsComplex = std::is_same_v<T, std::complex<float>> || std::is_same_v<T, std::complex<double>>;

// Integers wrap around, as tensors do: computed without a sign, and wide enough not to be promoted to int.
template <typename T, typename Compute>
T Wrapped(T a, T b, Compute compute) {
  if constexpr (std::is_integral_v<T>) {
    using Wide = std::conditional_t<sizeof(T) < sizeof(uint32_t), uint32_t, std::make_unsigned_t<T>>;
    return static_cast<T>(compute(static_cast<Wide>(a), static_cast<Wide>(b)));
  } else {
    return compute(a, b);
  }
}

// What is no number comes through minima and maxima, whoever has it.
template <typename T>
bool IsNan(T value) {
  if constexpr (std::is_floating_point_v<T>) return std::isnan(value);
  return false;
}

template <ReduceKind kind, typename T>
inline T Apply(T a, T b) {
  if constexpr (std::is_same_v<T, Bool>) {
    constexpr bool is_and =
        kind == ReduceKind::kProduct || kind == ReduceKind::kMin || kind == ReduceKind::kBand;
    if constexpr (kind == ReduceKind::kBxor) return Bool{static_cast<uint8_t>(a.value ^ b.value)};
    return Bool{static_cast<uint8_t>(is_and ? a.value & b.value : a.value | b.value)};
  } else if constexpr (kind == ReduceKind::kSum) {
    return Wrapped(a, b, [](auto x, auto y) { return x + y; });
  } else if constexpr (kind == ReduceKind::kProduct) {
    return Wrapped(a, b, [](auto x, auto y) { return x * y; });
  } else if constexpr (kind == ReduceKind::kMin) {
    return b < a || IsNan(b) ? b : a;
  } else if constexpr (kind == ReduceKind::kMax) {
    return a < b || IsNan(b) ? b : a;
  } else if constexpr (kind == ReduceKind::kBand) {
    return static_cast<T>(a & b);
  } else if constexpr (kind == ReduceKind::kBor) {
    return static_cast<T>(a | b);
  } else {
    return static_cast<T>(a ^ b);
  }
}

// The same loop twice: for every processor, and for those with AVX2. An exact alias is no dependence.
template <ReduceKind kind, typename T>
void LoopPlain(T* target, const T* a, const T* b, size_t count) {
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) target[i] = Apply<kind>(a[i], b[i]);
}

#if defined(__x86_64__)
template <ReduceKind kind, typename T>
__attribute__((target("avx2"))) void LoopAvx2(T* target, const T* a, const T* b, size_t count) {
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) target[i] = Apply<kind>(a[i], b[i]);
}
#endif

template <ReduceKind kind, typename T>
void Loop(T* target, const T* a, const T* b, size_t count) {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return LoopAvx2<kind>(target, a, b, count);
#endif
  LoopPlain<kind>(target, a, b, count);
}

void Widen(const Float16* source, float* target, size_t count) { FromFloat16(&source->bits, target, count); }
void Widen(const Bfloat16* source, float* target, size_t count) {
  FromBfloat16(&source->bits, target, count);
}
void Narrow(const float* source, Float16* target, size_t count) { ToFloat16(source, &target->bits, count); }
void Narrow(const float* source, Bfloat16* target, size_t count) { ToBfloat16(source, &target->bits, count); }

// One block, at most kBlock elements, of all sources.
template <ReduceKind kind, typename T>
void CombineBlock(T* target, const T* const* sources, int num_sources, size_t begin, size_t count) {
  if constexpr (kIsHalf<T>) {
    float sum[kBlock], next[kBlock];
    Widen(sources[0] + begin, sum, count);
    for (int i = 1; i < num_sources; ++i) {
      Widen(sources[i] + begin, next, count);
      Loop<kind>(sum, sum, next, count);
    }
    Narrow(sum, target + begin, count);
  } else {
    T sum[kBlock];  // apart from the target, which may be a source that is still to be read
    std::memcpy(static_cast<void*>(sum), sources[0] + begin, count * sizeof(T));
    for (int i = 1; i < num_sources; ++i) Loop<kind>(sum, sum, sources[i] + begin, count);
    std::memcpy(static_cast<void*>(target + begin), sum, count * sizeof(T));
  }
}

template <ReduceKind kind, typename T>
void CombineTyped(T* target, const T* const* sources, int num_sources, size_t count) {
  if constexpr (!kIsHalf<T>) {
    if (num_sources == 2) return Loop<kind>(target, sources[0], sources[1], count);
  }
  for (size_t begin = 0; begin < count; begin += kBlock) {
    CombineBlock<kind>(target, sources, num_sources, begin, std::min(kBlock, count - begin));
  }
}

template <typename T>
constexpr bool Exists(ReduceKind kind) {
  const bool is_bitwise = kind == ReduceKind::kBand || kind == ReduceKind::kBor || kind == ReduceKind::kBxor;
  if (is_bitwise) return std::is_integral_v<T> || std::is_same_v<T, Bool>;
  if (kind == ReduceKind::kMin || kind == ReduceKind::kMax) return !kIsComplex<T>;
  if (kind == ReduceKind::kAvg) return !std::is_same_v<T, Bool>;
  if (kind == ReduceKind::kPremulSum) return !std::is_same_v<T, Bool> && !std::is_integral_v<T>;
  return true;
}

// Calls visit(T*) with the type that stands for `type`.
template <typename Visit>
auto VisitType(DataType type, const Visit& visit) {
  switch (type) {
    case DataType::kFloat64:
      return visit(static_cast<double*>(nullptr));
    case DataType::kFloat32:
      return visit(static_cast<float*>(nullptr));
    case DataType::kFloat16:
      return visit(static_cast<Float16*>(nullptr));
    case DataType::kBfloat16:
      return visit(static_cast<Bfloat16*>(nullptr));
    case DataType::kInt8:
      return visit(static_cast<int8_t*>(nullptr));
    case DataType::kInt16:
      return visit(static_cast<int16_t*>(nullptr));
    case DataType::kInt32:
      return visit(static_cast<int32_t*>(nullptr));
    case DataType::kInt64:
      return visit(static_cast<int64_t*>(nullptr));
    case DataType::kUint8:
      return visit(static_cast<uint8_t*>(nullptr));
    case DataType::kUint16:
      return visit(static_cast<uint16_t*>(nullptr));
    case DataType::kUint32:
      return visit(static_cast<uint32_t*>(nullptr));
    case DataType::kUint64:
      return visit(static_cast<uint64_t*>(nullptr));
    case DataType::kBool:
      return visit(static_cast<Bool*>(nullptr));
    case DataType::kComplex64:
      return visit(static_cast<std::complex<float>*>(nullptr));
    case DataType::kComplex128:
      break;
  }
  return visit(static_cast<std::complex<double>*>(nullptr));
}

template <ReduceKind kind>
void CombineKind(DataType type, void* target, const void* const* sources, int num_sources, size_t count) {
  VisitType(type, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    if constexpr (Exists<T>(kind)) {
      CombineTyped<kind>(static_cast<T*>(target), reinterpret_cast<const T* const*>(sources), num_sources,
                         count);
    }
  });
}

// target = source times `factor`, or divided by it.
template <typename T>
void ScaleTyped(T* target, const T* source, size_t count, double factor, bool divide) {
  if constexpr (kIsHalf<T>) {
    float block[kBlock];
    for (size_t begin = 0; begin < count; begin += kBlock) {
      const size_t length = std::min(kBlock, count - begin);
      Widen(source + begin, block, length);
      ScaleTyped(block, block, length, factor, divide);
      Narrow(block, target + begin, length);
    }
  } else if constexpr (std::is_integral_v<T>) {  // division alone: see Exists()
    using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
    const Wide by = static_cast<Wide>(factor);
    for (size_t i = 0; i < count; ++i) target[i] = static_cast<T>(static_cast<Wide>(source[i]) / by);
  } else if constexpr (!std::is_same_v<T, Bool>) {
    const T by = static_cast<T>(factor);
    if (divide) {
      for (size_t i = 0; i < count; ++i) target[i] = source[i] / by;
    } else {
      for (size_t i = 0; i < count; ++i) target[i] = source[i] * by;
    }
  }
}

}  // namespace

size_t SizeOf(DataType type) {
  return VisitType(type, [](auto* typed) { return sizeof(*typed); });
}

const char* NameOf(DataType type) {
  static constexpr const char* kNames[] = {"float64", "float32", "float16", "bfloat16",  "int8",
                                           "int16",   "int32",   "int64",   "uint8",     "uint16",
                                           "uint32",  "uint64",  "bool",    "complex64", "complex128"};
  return kNames[static_cast<int>(type)];
}

const char* NameOf(ReduceKind kind) {
  static constexpr const char* kNames[] = {"sum",  "avg", "product", "min",       "max",
                                           "band", "bor", "bxor",    "premul_sum"};
  return kNames[static_cast<int>(kind)];
}

Status CheckReduction(DataType type, const Reduction& reduction) {
  const bool exists = VisitType(
      type, [&](auto* typed) { return Exists<std::remove_pointer_t<decltype(typed)>>(reduction.kind); });
  if (exists) return Status::Ok();
  return Status(StatusCode::kInvalidArgument,
                std::string("there is no reduction ") + NameOf(reduction.kind) + " of " + NameOf(type));
}

void Prepare(DataType type, const Reduction& reduction, void* target, const void* source, size_t count) {
  if (reduction.kind == ReduceKind::kPremulSum) {
    VisitType(type, [&](auto* typed) {
      using T = std::remove_pointer_t<decltype(typed)>;
      ScaleTyped(static_cast<T*>(target), static_cast<const T*>(source), count, reduction.factor, false);
    });
  } else if (target != source && count > 0) {
    std::memcpy(target, source, count * SizeOf(type));
  }
}

void Combine(DataType type, ReduceKind kind, void* target, const void* a, const void* b, size_t count) {
  const void* const sources[] = {a, b};
  CombineAll(type, kind, target, sources, 2, count);
}

void Conclude(DataType type, const Reduction& reduction, void* data, size_t count, int num_members) {
  if (reduction.kind != ReduceKind::kAvg) return;
  VisitType(type, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    ScaleTyped(static_cast<T*>(data), static_cast<const T*>(data), count, num_members, true);
  });
}

void CombineAll(DataType type, ReduceKind kind, void* target, const void* const* sources, int num_sources,
                size_t count) {
  switch (kind) {
    case ReduceKind::kSum:
    case ReduceKind::kAvg:
    case ReduceKind::kPremulSum:
      return CombineKind<ReduceKind::kSum>(type, target, sources, num_sources, count);
    case ReduceKind::kProduct:
      return CombineKind<ReduceKind::kProduct>(type, target, sources, num_sources, count);
    case ReduceKind::kMin:
      return CombineKind<ReduceKind::kMin>(type, target, sources, num_sources, count);
    case ReduceKind::kMax:
      return CombineKind<ReduceKind::kMax>(type, target, sources, num_sources, count);
    case ReduceKind::kBand:
      return CombineKind<ReduceKind::kBand>(type, target, sources, num_sources, count);
    case ReduceKind::kBor:
      return CombineKind<ReduceKind::kBor>(type, target, sources, num_sources, count);
    case ReduceKind::kBxor:
      return CombineKind<ReduceKind::kBxor>(type, target, sources, num_sources, count);
  }
}

}  // namespace elastates
