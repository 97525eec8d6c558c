#include "base/crc32c.h"

#include <array>
#include <cstring>

#include "base/crc32c_math.h"
#include "base/crc32c_x86.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace elastates {
namespace {

using crc32c::Multiply;
using crc32c::Power;
using crc32c::TimesX;
using crc32c::XToThe;

// tables[k][byte]: the register after `byte` and k zero bytes ("slicing by 8").
constexpr std::array<std::array<uint32_t, 256>, 8> MakeTables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (size_t k = 0; k < 8; ++k) {
      for (int bit = 0; bit < 8; ++bit) state = TimesX(state);
      tables[k][byte] = state;
    }
  }
  return tables;
}

constexpr auto kTables = MakeTables();

// Every Extend... takes and returns the raw register, ~crc.
uint32_t ExtendTables(uint32_t state, const char* data, size_t size_bytes) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
  for (; size_bytes >= 8; bytes += 8, size_bytes -= 8) {
    uint32_t next = 0;
    for (int i = 0; i < 4; ++i) next ^= kTables[7 - i][((state >> (8 * i)) & 0xFF) ^ bytes[i]];
    for (int i = 4; i < 8; ++i) next ^= kTables[7 - i][bytes[i]];
    state = next;
  }
  for (; size_bytes > 0; ++bytes, --size_bytes) state = kTables[0][(state ^ *bytes) & 0xFF] ^ (state >> 8);
  return state;
}

template <uint32_t (*kExtend)(uint32_t, const char*, size_t)>
uint32_t Run(const void* data, size_t size_bytes, uint32_t seed) {
  return ~kExtend(~seed, static_cast<const char*>(data), size_bytes);
}

#if defined(__x86_64__)

uint32_t ExtendFolding(uint32_t state, const char* data, size_t size_bytes) {
  constexpr size_t kWorthFolding =
      4 * crc32c::kFoldBytes;  // below, the final reduction costs more than it saves
  if (size_bytes >= kWorthFolding) {
    const size_t folded = size_bytes / crc32c::kFoldBytes * crc32c::kFoldBytes;
    state = crc32c::ExtendAvx512<false>(state, nullptr, data, folded);
    data += folded;
    size_bytes -= folded;
  }
  return crc32c::ExtendSerial(state, data, size_bytes);
}

void AddFastVersions(std::vector<Crc32cVersion>* versions) {
  if (crc32c::CpuHasAvx512Clmul()) versions->push_back({"avx512", Run<ExtendFolding>});
  if (crc32c::CpuHasSse42()) versions->push_back({"sse4.2", Run<crc32c::ExtendSse42>});
}

#elif defined(__aarch64__) && defined(__linux__)

// In assembly, because compilers disagree on whether one function may use an extension that the file may not.
inline uint32_t ArmCrc(uint32_t state, uint64_t word) {
  asm(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(state) : "r"(word));
  return state;
}

inline uint32_t ArmCrc(uint32_t state, unsigned char byte) {
  asm(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(state) : "r"(byte));
  return state;
}

uint32_t ExtendArm(uint32_t state, const char* data, size_t size_bytes) {
  for (; size_bytes >= 8; data += 8, size_bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, sizeof(word));
    state = ArmCrc(state, word);
  }
  for (; size_bytes > 0; ++data, --size_bytes) state = ArmCrc(state, static_cast<unsigned char>(*data));
  return state;
}

void AddFastVersions(std::vector<Crc32cVersion>* versions) {
  constexpr unsigned long kHwcapCrc32 = 1ul << 7;  // HWCAP_CRC32
  if ((getauxval(AT_HWCAP) & kHwcapCrc32) != 0) versions->push_back({"armv8", Run<ExtendArm>});
}

#else

void AddFastVersions(std::vector<Crc32cVersion>*) {}

#endif

std::vector<Crc32cVersion> MakeVersions() {
  std::vector<Crc32cVersion> versions;
  AddFastVersions(&versions);
  versions.push_back({"tables", Run<ExtendTables>});
  return versions;
}

}  // namespace

const std::vector<Crc32cVersion>& Crc32cVersions() {
  static const std::vector<Crc32cVersion> versions = MakeVersions();
  return versions;
}

uint32_t Crc32c(const void* data, size_t size_bytes, uint32_t seed) {
  static const auto fastest = Crc32cVersions().front().run;
  return fastest(data, size_bytes, seed);
}

uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t size_b_bytes) {
  constexpr uint32_t kOneByte = XToThe(8);
  return Multiply(Power(kOneByte, size_b_bytes), crc_a) ^ crc_b;
}

}  // namespace elastates
