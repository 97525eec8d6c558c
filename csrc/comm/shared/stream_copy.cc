#include "comm/shared/stream_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace elastates {

#if defined(__x86_64__)

void StreamCopy(void* target, const void* source, size_t size_bytes) {
  constexpr size_t kLine = 64;
  char* to = static_cast<char*>(target);
  const char* from = static_cast<const char*>(source);
  const size_t head = std::min(size_bytes, (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, head);
  size_t done = head;
  for (; done + kLine <= size_bytes; done += kLine) {
    __m128i parts[4];
    for (int i = 0; i < 4; ++i) {
      parts[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + done) + i);
    }
    for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(to + done) + i, parts[i]);
  }
  _mm_sfence();  // streaming stores are weakly ordered
  std::memcpy(to + done, from + done, size_bytes - done);
}

#else

void StreamCopy(void* target, const void* source, size_t size_bytes) {
  std::memcpy(target, source, size_bytes);
}

#endif

}  // namespace elastates
