// SHA-256 and HMAC against the published vectors, and against hashlib over every length around a block.
#include <cstdio>
#include <string>

#include "check.h"
#include "comm/links/sha256.h"
#include "comm_links.h"

namespace elastates {
namespace {

std::string Hex(const Digest& digest) {
  std::string text;
  for (const uint8_t byte : digest) {
    char two[3];
    std::snprintf(two, sizeof(two), "%02x", byte);
    text += two;
  }
  return text;
}

std::string Bytes(const Digest& digest) { return std::string(digest.begin(), digest.end()); }

TEST(sha256_gives_the_published_digests) {
  CHECK_EQ(Hex(Sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK_EQ(Hex(Sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK_EQ(Hex(Sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
           "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK_EQ(Hex(Sha256(std::string(1000000, 'a'))),
           "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(hmac_gives_the_digests_of_rfc_4231) {
  CHECK_EQ(Hex(HmacSha256(std::string(20, '\x0b'), "Hi There")),
           "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  CHECK_EQ(Hex(HmacSha256("Jefe", "what do ya want for nothing?")),
           "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  CHECK_EQ(
      Hex(HmacSha256(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First")),
      "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

// Expected: Python's hashlib and hmac, over the same bytes.
TEST(every_length_up_to_300_agrees_with_hashlib) {
  std::string hashes, macs;
  for (size_t size = 0; size < 300; ++size) {
    hashes += Bytes(Sha256(Pattern(size)));
    macs += Bytes(HmacSha256(Pattern(size, 2), Pattern(size)));
  }
  CHECK_EQ(Hex(Sha256(hashes)), "4ae781ad4483ebdb824d27c006bb70bcf0390b73108ff87bff68b240d6f908df");
  CHECK_EQ(Hex(Sha256(macs)), "9bb72f4a1435d6498093082f892ef92d43b130cf6ab6bf604f173f40bd678d7c");
}

TEST(digests_that_differ_anywhere_are_not_equal) {
  const Digest digest = Sha256("x");
  CHECK(EqualInConstantTime(digest, digest));
  for (size_t i = 0; i < digest.size(); ++i) {
    Digest other = digest;
    other[i] ^= 1;
    CHECK(!EqualInConstantTime(digest, other));
  }
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
