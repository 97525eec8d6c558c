// The fake that layers above are tested with keeps the contract of messengers.
#include "comm_loopback.h"

#include <future>

#include "check.h"
#include "comm/member.h"

namespace elastates {
namespace {

constexpr auto kPatience = std::chrono::seconds(60);

class Outcome {
 public:
  MessageDone Done() {
    return [promise = promise_](Status status) { promise->set_value(std::move(status)); };
  }
  Status Wait() {
    CHECK(future_.wait_for(kPatience) == std::future_status::ready);
    return future_.get();
  }

 private:
  std::shared_ptr<std::promise<Status>> promise_ = std::make_shared<std::promise<Status>>();
  std::future<Status> future_ = promise_->get_future();
};

MessageAddress At(uint64_t sequence, uint32_t epoch = 1) { return {7, epoch, 0, sequence}; }

TEST(a_message_arrives_whether_or_not_it_is_expected) {
  LoopbackNet net(2, {3, 0.001});
  for (uint64_t i = 0; i < 20; ++i) {
    const uint64_t sent = i * i;
    uint64_t got = 0;
    Outcome sending, receiving;
    if (i % 2) net.at(1).Receive(net.member(0).id, At(i), &got, sizeof(got), receiving.Done());
    net.at(0).Send(net.member(1).id, At(i), &sent, sizeof(sent), sending.Done());
    CHECK_OK(sending.Wait());
    if (i % 2 == 0) net.at(1).Receive(net.member(0).id, At(i), &got, sizeof(got), receiving.Done());
    CHECK_OK(receiving.Wait());
    CHECK_EQ(got, sent);
  }
}

TEST(control_messages_keep_their_order) {
  LoopbackNet net(2, {5, 0.001});
  std::vector<std::string> got;
  std::promise<void> all;
  net.at(1).SetObserver({[&](MemberId, const std::string& content) {
                           got.push_back(content);
                           if (got.size() == 50) all.set_value();
                         },
                         nullptr});
  for (int i = 0; i < 50; ++i) net.at(0).SendControl(net.member(1).id, std::to_string(i));
  CHECK(all.get_future().wait_for(kPatience) == std::future_status::ready);
  for (size_t i = 0; i < 50; ++i) CHECK_EQ(got[i], std::to_string(i));
}

TEST(a_death_fails_what_waits_for_it_and_is_told_with_its_proof) {
  LoopbackNet net(3, {9, 0.001});
  std::promise<std::string> told;
  net.at(1).SetObserver({nullptr, [&](MemberId, Loss loss, const std::string&, const std::string& proof) {
                           if (loss == Loss::kDead) told.set_value(proof);
                         }});
  char byte = 0;
  Outcome receiving;
  net.at(1).Receive(net.member(2).id, At(0), &byte, 1, receiving.Done());
  net.Kill(2, "vote");
  CHECK_EQ(told.get_future().get(), "vote");
  CHECK_EQ(receiving.Wait().code(), StatusCode::kPeerLost);
  Outcome later;
  net.at(1).Send(net.member(2).id, At(1), &byte, 1, later.Done());
  CHECK_EQ(later.Wait().code(), StatusCode::kPeerLost);
}

TEST(a_cancelled_epoch_stays_cancelled) {
  LoopbackNet net(2, {1, 0});
  char byte = 0;
  Outcome old_receive, new_receive, late_receive;
  net.at(0).Receive(net.member(1).id, At(0, 1), &byte, 1, old_receive.Done());
  net.at(0).Receive(net.member(1).id, At(0, 2), &byte, 1, new_receive.Done());
  net.at(0).Cancel(7, 1, Status(StatusCode::kRevoked, "revoked"));
  CHECK_EQ(old_receive.Wait().code(), StatusCode::kRevoked);
  net.at(0).Receive(net.member(1).id, At(1, 1), &byte, 1, late_receive.Done());
  CHECK_EQ(late_receive.Wait().code(), StatusCode::kRevoked);
  Outcome sending;
  net.at(1).Send(net.member(0).id, At(0, 2), "x", 1, sending.Done());
  CHECK_OK(sending.Wait());
  CHECK_OK(new_receive.Wait());
  CHECK_EQ(byte, 'x');
}

TEST(lengths_that_differ_are_an_error_of_the_receiver) {
  LoopbackNet net(2);
  char bytes[4];
  Outcome sending, receiving;
  net.at(1).Receive(net.member(0).id, At(0), bytes, 4, receiving.Done());
  net.at(0).Send(net.member(1).id, At(0), "abc", 3, sending.Done());
  CHECK_OK(sending.Wait());
  CHECK_EQ(receiving.Wait().code(), StatusCode::kInvalidArgument);
}

TEST(a_member_survives_being_written_down) {
  Member member;
  member.id = 0xfeed0000beef0001;
  member.host = "boot.net.pid.1000";
  member.pid = 4711;
  member.addresses = {"10.0.0.7:4711", "[fe80::1]:80"};
  member.local_address = "elastates-feed";
  Result<Member> decoded = DecodeMember(Encode(member));
  CHECK_OK(decoded.status());
  CHECK_EQ(Encode(decoded.value()), Encode(member));
  CHECK(decoded.value().addresses == member.addresses);
  for (const std::string bad :
       {"", "m1", "m2;1;1;h;l;", "m1;0;1;h;l;", "m1;x;1;h;l;", "m1;1;-1;h;l;", "m1;1;1;a b;l;"})
    CHECK_EQ(DecodeMember(bad).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
