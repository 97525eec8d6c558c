// Messages between pools, over unix sockets and over TCP: every size, every order, cancelled and not.
#include <functional>

#include "comm_links.h"

namespace elastates {
namespace {

struct Pair {
  Witness a_saw, b_saw;
  std::unique_ptr<LinkPool> a, b;

  explicit Pair(bool is_local)
      : a(StartPool(is_local ? JobOptions() : RemoteOptions("here"))),
        b(StartPool(is_local ? JobOptions() : RemoteOptions("there"))) {
    a->SetObserver(a_saw.Observer());
    b->SetObserver(b_saw.Observer());
    ConnectAll({a.get(), b.get()});
  }
};

void OverBoth(const std::function<void(Pair&)>& test) {
  for (const bool is_local : {true, false}) {
    Pair pair(is_local);
    CHECK_EQ(pair.a->IsLocal(pair.b->self().id), is_local);
    test(pair);
  }
}

TEST(messages_of_every_size_arrive) {
  OverBoth([](Pair& pair) {
    uint64_t sequence = 0;
    for (const size_t size : {0u, 1u, 47u, 4096u, 65536u, 65537u, 1u << 20, (1u << 20) + 1, 5000001u}) {
      Exchange(pair.a.get(), pair.b.get(), At(sequence++), Pattern(size));
      Exchange(pair.b.get(), pair.a.get(), At(sequence++), Pattern(size, 2));
    }
  });
}

TEST(a_message_waits_for_its_receive) {
  OverBoth([](Pair& pair) {
    const std::string small = Pattern(100), large = Pattern(3 << 20);
    std::string got_small(small.size(), '?'), got_large(large.size(), '?');
    Outcome sent[2], received[2];
    pair.a->Send(pair.b->self().id, At(0), small.data(), small.size(), sent[0].Done());
    pair.a->Send(pair.b->self().id, At(1), large.data(), large.size(), sent[1].Done());
    CHECK_OK(sent[0].Wait());
    CHECK_OK(sent[1].Wait());  // though nobody has asked for it
    pair.b->Receive(pair.a->self().id, At(1), got_large.data(), got_large.size(), received[1].Done());
    pair.b->Receive(pair.a->self().id, At(0), got_small.data(), got_small.size(), received[0].Done());
    CHECK_OK(received[0].Wait());
    CHECK_OK(received[1].Wait());
    CHECK(got_small == small);
    CHECK(got_large == large);
  });
}

TEST(many_messages_both_ways_at_once_each_find_their_own) {
  OverBoth([](Pair& pair) {
    constexpr size_t kCount = 300;
    std::vector<std::string> sent, got;
    for (size_t i = 0; i < kCount; ++i) sent.push_back(Pattern(i * 977 % 200000, static_cast<unsigned>(i)));
    for (const std::string& message : sent) got.push_back(std::string(message.size(), '?'));
    const std::vector<std::string> again = got;
    got.insert(got.end(), again.begin(), again.end());
    std::vector<Outcome> outcomes(4 * kCount);
    size_t next = 0;
    for (size_t i = 0; i < kCount; ++i) {
      LinkPool* ends[2] = {pair.a.get(), pair.b.get()};
      for (size_t side = 0; side < 2; ++side) {
        LinkPool *from = ends[side], *to = ends[1 - side];
        const size_t j = kCount - 1 - i;
        std::string& place = got[side * kCount + j];
        from->Send(to->self().id, At(1, 1, static_cast<uint32_t>(i)), sent[i].data(), sent[i].size(),
                   outcomes[next++].Done());
        to->Receive(from->self().id, At(1, 1, static_cast<uint32_t>(j)), place.data(), place.size(),
                    outcomes[next++].Done());
      }
    }
    for (Outcome& outcome : outcomes) CHECK_OK(outcome.Wait());
    for (size_t i = 0; i < 2 * kCount; ++i) CHECK(got[i] == sent[i % kCount]);
  });
}

TEST(lengths_that_differ_are_told_to_the_receiver_and_hurt_nobody_else) {
  OverBoth([](Pair& pair) {
    for (const bool expected : {true, false}) {
      const std::string message = Pattern(200000);
      std::string place(1000, '?');
      Outcome sending, receiving;
      const MessageAddress at = At(expected ? 1 : 2);
      const auto receive = [&] {
        pair.b->Receive(pair.a->self().id, at, place.data(), place.size(), receiving.Done());
      };
      if (expected) receive();
      pair.a->Send(pair.b->self().id, at, message.data(), message.size(), sending.Done());
      CHECK_OK(sending.Wait());
      if (!expected) receive();
      const Status status = receiving.Wait();
      CHECK_EQ(status.code(), StatusCode::kInvalidArgument);
      CHECK(status.message().find("200000 bytes came for a receive of 1000") != std::string::npos);
      CHECK(place == std::string(1000, '?'));
    }
    Exchange(pair.a.get(), pair.b.get(), At(3), Pattern(200000));
  });
}

TEST(control_messages_keep_their_order_and_overtake_bulk) {
  OverBoth([](Pair& pair) {
    const std::string large = Pattern(64 << 20);
    std::string got(large.size(), '?');
    Outcome sending, receiving;
    pair.a->Send(pair.b->self().id, At(0), large.data(), large.size(), sending.Done());
    for (int i = 0; i < 100; ++i) pair.a->SendControl(pair.b->self().id, std::to_string(i));
    CHECK(pair.b_saw.WaitForControls(100));
    for (size_t i = 0; i < 100; ++i) CHECK_EQ(pair.b_saw.controls[i].second, std::to_string(i));
    CHECK_EQ(pair.b_saw.controls[0].first, pair.a->self().id);
    pair.b->Receive(pair.a->self().id, At(0), got.data(), got.size(), receiving.Done());
    CHECK_OK(receiving.Wait());
    CHECK_OK(sending.Wait());
    CHECK(got == large);
  });
}

TEST(a_cancelled_epoch_gives_its_bytes_back_and_the_next_one_works) {
  OverBoth([](Pair& pair) {
    const Status why(StatusCode::kRevoked, "the group was revoked");
    for (uint32_t epoch = 1; epoch <= 10; ++epoch) {
      Outcome sending, receiving, never;
      {
        const std::string large = Pattern(30 << 20);
        std::string place(large.size(), '?');
        char byte = 0;
        pair.b->Receive(pair.a->self().id, At(1, epoch), place.data(), place.size(), receiving.Done());
        pair.b->Receive(pair.a->self().id, At(2, epoch), &byte, 1, never.Done());
        pair.a->Send(pair.b->self().id, At(1, epoch), large.data(), large.size(), sending.Done());
        pair.a->SendControl(pair.b->self().id, "go");
        CHECK(pair.b_saw.WaitForControls(epoch));  // the transfer is under way, or over
        pair.a->Cancel(7, epoch, why);
        pair.b->Cancel(7, epoch, why);
      }  // nobody touches the bytes any more, as the sanitizers see
      sending.Wait().ok();
      receiving.Wait().ok();
      CHECK_EQ(never.Wait().code(), StatusCode::kRevoked);
      Outcome late;
      char byte = 0;
      pair.b->Receive(pair.a->self().id, At(3, epoch), &byte, 1, late.Done());
      CHECK_EQ(late.Wait().message(), "the group was revoked");
      Exchange(pair.a.get(), pair.b.get(), At(1, epoch + 1, 9), Pattern(100000));
    }
  });
}

TEST(posts_without_a_link_say_so) {
  const auto alone = StartPool(JobOptions());
  Outcome sending;
  alone->Send(42, At(0), "x", 1, sending.Done());
  const Status status = sending.Wait();
  CHECK_EQ(status.code(), StatusCode::kInvalidArgument);
  CHECK(status.message().find("000000000000002a") != std::string::npos);
}

TEST(what_runs_later_runs_on_the_thread_and_not_before_its_time) {
  const auto pool = StartPool(JobOptions());
  const auto begun = std::chrono::steady_clock::now();
  std::promise<double> after_s;
  std::vector<int> order;
  pool->RunLater(0.02, [&] {
    order.push_back(2);
    after_s.set_value(std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
  });
  pool->RunLater(0.01, [&] { order.push_back(1); });
  CHECK_GE(after_s.get_future().get(), 0.02);
  CHECK(order == std::vector<int>({1, 2}));
}

TEST(a_pool_that_goes_completes_what_is_posted_and_is_missed) {
  OverBoth([](Pair& pair) {
    Outcome own, peers;
    char byte = 0, other = 0;
    pair.a->Receive(pair.b->self().id, At(0), &byte, 1, own.Done());
    pair.b->Receive(pair.a->self().id, At(0), &other, 1, peers.Done());
    const MemberId gone = pair.a->self().id;
    pair.a.reset();
    CHECK_EQ(own.Wait().code(), StatusCode::kCancelled);
    const Status status = peers.Wait();
    CHECK_EQ(status.code(), StatusCode::kPeerLost);
    CHECK(status.message().find("it has closed its links") != std::string::npos);
    CHECK(pair.b_saw.WaitForLosses(1));
    CHECK_EQ(pair.b_saw.losses[0].peer, gone);
    CHECK_EQ(pair.b_saw.losses[0].loss, Loss::kUnreachable);
  });
}

TEST(what_arrived_before_the_loss_is_still_given_out) {
  OverBoth([](Pair& pair) {
    const MemberId gone = pair.a->self().id;
    Outcome sending, receiving, other;
    pair.a->Send(pair.b->self().id, At(0), "x", 1, sending.Done());
    CHECK_OK(sending.Wait());
    pair.a.reset();
    CHECK(pair.b_saw.WaitForLosses(1));
    char byte = 0, nothing = 0;
    pair.b->Receive(gone, At(0), &byte, 1, receiving.Done());
    pair.b->Receive(gone, At(1), &nothing, 1, other.Done());
    CHECK_OK(receiving.Wait());
    CHECK_EQ(byte, 'x');
    CHECK_EQ(other.Wait().code(), StatusCode::kPeerLost);
  });
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
