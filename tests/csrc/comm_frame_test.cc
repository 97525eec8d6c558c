// Frames and greetings as bytes: what is written is read, and whatever else comes is refused, never believed.
#include <algorithm>
#include <array>
#include <random>

#include "check.h"
#include "comm/links/frame.h"
#include "comm/links/greeting.h"
#include "comm/links/mailbox.h"

namespace elastates {
namespace {

using Bytes = std::array<char, kFrameHeaderBytes>;

FrameHeader SomeSlice() {
  FrameHeader header;
  header.type = FrameType::kSlice;
  header.length_bytes = 1000;
  header.address = {0x1122334455667788, 3, 9, 0xfeedfacecafebeef};
  header.total_bytes = 5000;
  header.offset_bytes = 4000;
  return header;
}

TEST(a_header_survives_the_wire) {
  const FrameHeader sent = SomeSlice();
  Bytes bytes;
  EncodeFrameHeader(sent, bytes.data());
  FrameHeader got;
  std::string why;
  CHECK(DecodeFrameHeader(bytes.data(), &got, &why));
  CHECK_EQ(got.type, sent.type);
  CHECK_EQ(got.length_bytes, sent.length_bytes);
  CHECK_EQ(got.address.group, sent.address.group);
  CHECK_EQ(got.address.epoch, sent.address.epoch);
  CHECK_EQ(got.address.tag, sent.address.tag);
  CHECK_EQ(got.address.sequence, sent.address.sequence);
  CHECK_EQ(got.total_bytes, sent.total_bytes);
  CHECK_EQ(got.offset_bytes, sent.offset_bytes);
}

// What is accepted keeps within the bounds that the reader relies on.
void CheckBounds(const FrameHeader& header) {
  if (header.type == FrameType::kSlice) {
    CHECK_LE(header.length_bytes, kMaxSliceBytes);
    CHECK_LE(header.total_bytes, kMaxMessageBytes);
    CHECK_LE(header.offset_bytes + header.length_bytes, header.total_bytes);
    CHECK(header.length_bytes > 0 || header.total_bytes == 0);
  } else {
    CHECK_LE(header.length_bytes, header.type == FrameType::kControl ? kMaxControlBytes : 0);
  }
}

TEST(whatever_is_accepted_is_within_bounds) {
  std::mt19937_64 random(7);
  const uint64_t edges[] = {
      0, 1, kMaxSliceBytes, kMaxSliceBytes + 1, kMaxMessageBytes, kMaxMessageBytes + 1, ~0ull};
  int num_accepted = 0;
  for (int i = 0; i < 200000; ++i) {
    FrameHeader header = SomeSlice();
    header.length_bytes = static_cast<uint32_t>(edges[random() % 7]);
    header.total_bytes = edges[random() % 7];
    header.offset_bytes = edges[random() % 7];
    Bytes bytes;
    EncodeFrameHeader(header, bytes.data());
    for (uint64_t flips = random() % 3; flips > 0; --flips)
      bytes[random() % bytes.size()] ^= static_cast<char>(1u << random() % 8);
    std::string why;
    FrameHeader got;
    if (DecodeFrameHeader(bytes.data(), &got, &why)) {
      CheckBounds(got);
      ++num_accepted;
    } else {
      CHECK(!why.empty());
    }
  }
  CHECK_GT(num_accepted, 1000);
}

Greeting SomeGreeting() {
  Greeting greeting;
  greeting.to = 5;
  greeting.link = 99;
  greeting.socket = 1;
  greeting.num_bulk_sockets = 2;
  greeting.epoch = 4;
  greeting.has_segment = true;
  greeting.nonce[3] = 17;
  greeting.job = "job";
  greeting.member.id = 6;
  greeting.member.host = "host";
  greeting.member.pid = 77;
  return greeting;
}

TEST(a_greeting_survives_the_wire) {
  Result<Greeting> got = DecodeBody(EncodeBody(SomeGreeting()));
  CHECK_OK(got.status());
  CHECK_EQ(EncodeBody(got.value()), EncodeBody(SomeGreeting()));
  CHECK_EQ(got.value().member.pid, 77);
}

TEST(greetings_that_are_cut_or_changed_never_do_harm) {
  const std::string body = EncodeBody(SomeGreeting());
  for (size_t length = 0; length < body.size(); ++length) CHECK(!DecodeBody(body.substr(0, length)).ok());
  CHECK(!DecodeBody(body + "x").ok());
  std::mt19937_64 random(11);
  for (int i = 0; i < 100000; ++i) {
    std::string changed = body;
    for (uint64_t flips = 1 + random() % 4; flips > 0; --flips)
      changed[random() % changed.size()] = static_cast<char>(random());
    Result<Greeting> got = DecodeBody(changed);
    if (!got.ok()) continue;
    CHECK_LE(got.value().job.size(), kMaxJobBytes);
    CHECK_LE(got.value().socket, got.value().num_bulk_sockets);
    CHECK_LE(got.value().num_bulk_sockets, kMaxBulkSockets);
  }
}

TEST(proofs_depend_on_the_secret_the_role_and_both_greetings) {
  const Digest proof = DialerProof("secret", "hello", "answer");
  CHECK(proof == DialerProof("secret", "hello", "answer"));
  CHECK(proof != AcceptorProof("secret", "hello", "answer"));
  CHECK(proof != DialerProof("Secret", "hello", "answer"));
  CHECK(proof != DialerProof("secret", "hell", "oanswer"));
  CHECK(proof != DialerProof("secret", "answer", "hello"));
}

// Slices of one message in any order and over any number of sockets, its receive posted at any moment.
TEST(a_mailbox_puts_slices_together_whenever_it_is_asked) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 300; ++round) {
    Mailbox mailbox;
    std::string sent(10 * 100, '\0'), got(sent.size(), '?');
    for (char& c : sent) c = static_cast<char>(random());
    std::vector<uint64_t> offsets;
    for (uint64_t offset = 0; offset < sent.size(); offset += 100) offsets.push_back(offset);
    std::shuffle(offsets.begin(), offsets.end(), random);
    const size_t posted_at = random() % (2 * offsets.size() + 1);
    int num_done = 0;
    size_t step = 0;
    const auto maybe_post = [&] {
      if (step++ != posted_at) return;
      mailbox.Post(1, MessageAddress{}, got.data(), got.size(),
                   [&](const Status& status) { num_done += status.ok(); });
    };
    for (const uint64_t offset : offsets) {
      maybe_post();
      FrameHeader slice = SomeSlice();
      slice.address = MessageAddress{};
      slice.length_bytes = 100;
      slice.total_bytes = sent.size();
      slice.offset_bytes = offset;
      std::string why;
      const Mailbox::IncomingPtr incoming = mailbox.Begin(1, slice, &why);
      CHECK(incoming != nullptr);
      std::copy_n(sent.data() + offset, 50, incoming->base + offset);
      maybe_post();  // in the middle of a slice
      std::copy_n(sent.data() + offset + 50, 50, incoming->base + offset + 50);
      mailbox.End(incoming, slice);
    }
    maybe_post();
    CHECK_EQ(num_done, 1);
    CHECK(got == sent);
  }
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
