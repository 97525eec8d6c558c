// SHA-256 (FIPS 180-4) and HMAC-SHA256 (RFC 2104): what two ends of a link prove the job's secret with.
//
// Written for handshakes, a few hundred bytes each: clear rather than fast. Values; no shared state.
#ifndef ELASTATES_COMM_LINKS_SHA256_H_
#define ELASTATES_COMM_LINKS_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace elastates {

using Digest = std::array<uint8_t, 32>;

Digest Sha256(std::string_view message);
Digest HmacSha256(std::string_view key, std::string_view message);

// Takes the same time wherever they differ, so that a digest cannot be guessed byte by byte.
bool EqualInConstantTime(const Digest& a, const Digest& b);

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_SHA256_H_
