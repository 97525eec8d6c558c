// Whoever does not belong to the job is sent away, named, and costs little.
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <random>

#include "comm/links/frame.h"
#include "comm/links/greeting.h"
#include "comm/links/socket.h"
#include "comm_links.h"

namespace elastates {
namespace {

LinkPoolOptions PatientOptions(double handshake_timeout_s = 60) {
  LinkPoolOptions options = RemoteOptions("home");
  options.handshake_timeout_s = handshake_timeout_s;
  return options;
}

// Until so many were refused; what was said of the last.
std::string WaitForRefusals(const LinkPool& pool, uint64_t count) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (pool.refusals().count < count) {
    CHECK(std::chrono::steady_clock::now() < until);
    std::this_thread::yield();
  }
  return pool.refusals().newest.back();
}

// Somebody who writes the protocol by hand.
class Caller {
 public:
  explicit Caller(const Member& member) {
    Result<Socket> dialled = DialTcp(member.addresses[0]);
    CHECK_OK(dialled.status());
    socket_ = std::move(dialled).value();
    Wait(POLLOUT);
  }

  // False: the other end has closed.
  bool Write(const std::string& bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      iovec part{const_cast<char*>(bytes.data()) + sent, bytes.size() - sent};
      const ssize_t result = elastates::Send(socket_, &part, 1);
      if (result == -EAGAIN) {
        Wait(POLLOUT);
      } else if (result < 0) {
        return false;
      } else {
        sent += static_cast<size_t>(result);
      }
    }
    return true;
  }
  std::string Read(size_t size_bytes) {
    std::string bytes;
    while (bytes.size() < size_bytes) {
      char buffer[4096];
      iovec part{buffer, std::min(sizeof(buffer), size_bytes - bytes.size())};
      const ssize_t result = elastates::Receive(socket_, &part, 1);
      if (result == -EAGAIN) {
        Wait(POLLIN);
      } else if (result <= 0) {
        return bytes;  // closed
      } else {
        bytes.append(buffer, static_cast<size_t>(result));
      }
    }
    return bytes;
  }
  bool IsClosed() { return Read(1).empty(); }

  // The next greeting's body; its type must be this.
  std::string ReadGreeting(GreetingType type) {
    GreetingHeader header;
    std::string why;
    const std::string bytes = Read(kGreetingHeaderBytes);
    CHECK_EQ(bytes.size(), kGreetingHeaderBytes);
    CHECK(DecodeGreetingHeader(bytes.data(), &header, &why));
    CHECK_EQ(header.type, type);
    return Read(header.body_bytes);
  }
  Refusal ReadRefusal() { return static_cast<Refusal>(ReadGreeting(GreetingType::kRefuse).at(0)); }

  // Says Hello and proves that it knows the secret; the acceptor's Welcome is left to be read.
  void Prove(const Greeting& hello, const std::string& secret) {
    const std::string said = EncodeBody(hello);
    CHECK(Write(EncodeGreeting(GreetingType::kHello, said)));
    const std::string answer = ReadGreeting(GreetingType::kAnswer);
    const Digest proof = DialerProof(secret, said, answer);
    CHECK(Write(EncodeGreeting(GreetingType::kProof, std::string(proof.begin(), proof.end()))));
  }

 private:
  void Wait(short events) {
    pollfd poller{socket_.get(), events, 0};
    CHECK_EQ(poll(&poller, 1, static_cast<int>(kPatience_s * 1e3)), 1);
  }
  Socket socket_;
};

Greeting HelloTo(const Member& member) {
  static std::atomic<MemberId> next{0xabc0};
  Greeting hello;
  hello.to = member.id;
  hello.link = 5;
  hello.num_bulk_sockets = 1;
  hello.job = JobOptions().job;
  hello.member.id = next.fetch_add(1);
  hello.member.host = "elsewhere";
  hello.member.pid = 1;
  return hello;
}

TEST(the_wrong_job_member_or_secret_is_refused_by_name) {
  const auto pool = StartPool(PatientOptions());
  pool->SetObserver({});
  const auto refused = [&](const Greeting& hello) {
    Caller caller(pool->self());
    CHECK(caller.Write(EncodeGreeting(GreetingType::kHello, EncodeBody(hello))));
    const Refusal refusal = caller.ReadRefusal();
    CHECK(caller.IsClosed());
    return refusal;
  };
  Greeting wrong_job = HelloTo(pool->self()), wrong_member = HelloTo(pool->self()),
           alone = HelloTo(pool->self());
  wrong_job.job = "another";
  wrong_member.to += 1;
  alone.socket = 1;
  CHECK_EQ(refused(wrong_job), Refusal::kWrongJob);
  CHECK_EQ(refused(wrong_member), Refusal::kWrongMember);
  CHECK_EQ(refused(alone), Refusal::kNoLink);
  CHECK(WaitForRefusals(*pool, 2).find("127.0.0.1:") != std::string::npos);
  Caller liar(pool->self());
  liar.Prove(HelloTo(pool->self()), "another secret of enough bytes");
  CHECK_EQ(liar.ReadRefusal(), Refusal::kWrongSecret);
  CHECK(liar.IsClosed());
  CHECK(WaitForRefusals(*pool, 3).find("does not know the job's secret") != std::string::npos);
}

TEST(pools_of_two_jobs_or_secrets_do_not_link) {
  for (const bool is_local : {true, false}) {
    const auto pool = StartPool(is_local ? JobOptions() : RemoteOptions("here"));
    LinkPoolOptions other_job = is_local ? JobOptions() : RemoteOptions("there");
    LinkPoolOptions other_secret = other_job;
    other_job.job = "job-8";
    other_secret.secret = "some other secret of enough bytes";
    for (const LinkPoolOptions& options : {other_job, other_secret}) {
      const auto stranger = StartPool(options);
      pool->SetObserver({});
      const Status status = stranger->Connect({pool->self()}, 0.3);
      CHECK_EQ(status.code(), StatusCode::kDeadlineExceeded);
      CHECK(status.message().find("no link to 1 of 1 members in time: member ") != std::string::npos);
      CHECK(status.message().find("it refused: ") != std::string::npos);
    }
    CHECK_GE(pool->refusals().count, 2u);
  }
}

TEST(a_member_that_cannot_prove_itself_is_not_believed) {
  Result<Socket> listening = ListenTcp("127.0.0.1");
  CHECK_OK(listening.status());
  Member impostor;
  impostor.id = ~0ull;
  impostor.host = "elsewhere";
  impostor.addresses = {LocalAddress(listening.value()).value()};
  const auto pool = StartPool(PatientOptions(0.2));
  const Status status = pool->Connect({impostor}, 0.5);  // somebody listens there, and says nothing
  CHECK_EQ(status.code(), StatusCode::kDeadlineExceeded);
  CHECK(status.message().find(Describe(Refusal::kTooSlow)) != std::string::npos);
}

TEST(garbage_and_other_versions_are_refused) {
  const auto pool = StartPool(PatientOptions());
  pool->SetObserver({});
  Caller browser(pool->self());
  CHECK(browser.Write("GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n"));
  CHECK(browser.IsClosed());
  CHECK(WaitForRefusals(*pool, 1).find("does not speak this protocol") != std::string::npos);
  std::string newer = EncodeGreeting(GreetingType::kHello, EncodeBody(HelloTo(pool->self())));
  newer[4] = 9;
  Caller future(pool->self());
  CHECK(future.Write(newer));
  CHECK(future.IsClosed());
  CHECK(WaitForRefusals(*pool, 2).find("it speaks version 9, this is version 1") != std::string::npos);
}

TEST(who_says_nothing_is_closed_at_the_deadline) {
  const auto pool = StartPool(PatientOptions(0.05));
  pool->SetObserver({});
  Caller silent(pool->self()), halting(pool->self());
  CHECK(halting.Write("ELW"));
  CHECK(silent.IsClosed());
  CHECK(halting.IsClosed());
  CHECK(WaitForRefusals(*pool, 2).find("did not answer in time") != std::string::npos);
}

TEST(a_crowd_of_strangers_is_bounded_and_members_still_get_in) {
  const auto pool = StartPool(PatientOptions());
  pool->SetObserver({});
  std::vector<std::unique_ptr<Caller>> crowd;
  for (int i = 0; i < 200; ++i) crowd.push_back(std::make_unique<Caller>(pool->self()));
  CHECK(WaitForRefusals(*pool, 200 - 128).find("too many connections wait") != std::string::npos);
  const auto member = StartPool(RemoteOptions("there"));
  ConnectAll({pool.get(), member.get()});
  Exchange(pool.get(), member.get(), At(0), Pattern(100000));
}

TEST(handshakes_of_random_bytes_never_do_harm) {
  const auto pool = StartPool(PatientOptions());
  pool->SetObserver({});
  std::mt19937_64 random(5);
  for (int i = 0; i < 200; ++i) {
    std::string bytes = EncodeGreeting(GreetingType::kHello, EncodeBody(HelloTo(pool->self())));
    for (uint64_t flips = 1 + random() % 8; flips > 0; --flips)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    bytes.resize(random() % (bytes.size() + 1));
    Caller(pool->self()).Write(bytes);
  }
  const auto member = StartPool(RemoteOptions("there"));
  ConnectAll({pool.get(), member.get()});
}

// A member that is proven, and then sends what no member sends.
TEST(random_frames_break_their_link_and_nothing_else) {
  Witness witness;
  const auto pool = StartPool(PatientOptions()), member = StartPool(RemoteOptions("there"));
  pool->SetObserver(witness.Observer());
  ConnectAll({pool.get(), member.get()});
  std::mt19937_64 random(9);
  for (size_t round = 0; round < 60; ++round) {
    Caller caller(pool->self());
    caller.Prove(HelloTo(pool->self()), JobOptions().secret);
    caller.ReadGreeting(GreetingType::kWelcome);
    CHECK(caller.Write(EncodeGreeting(GreetingType::kConfirm, "")));
    std::string frames;
    for (int i = 0; i < 20; ++i) {
      FrameHeader header;
      header.type = static_cast<FrameType>(1 + random() % 4);
      header.length_bytes = static_cast<uint32_t>(random() % 300);
      header.address.group = random() % 2;
      header.total_bytes = random() % 600;
      header.offset_bytes = random() % 300;
      char bytes[kFrameHeaderBytes];
      EncodeFrameHeader(header, bytes);
      if (random() % 4 == 0) bytes[random() % kFrameHeaderBytes] = static_cast<char>(random());
      frames.append(bytes, kFrameHeaderBytes);
      frames.append(random() % 300, 'x');
    }
    caller.Write(frames);
    // its socket closes here at the latest
  }
  CHECK(witness.WaitForLosses(60));
  Exchange(pool.get(), member.get(), At(0), Pattern(100000));
}

TEST(the_newest_refusals_are_kept_and_all_are_counted) {
  const auto pool = StartPool(PatientOptions());
  pool->SetObserver({});
  for (int i = 0; i < 20; ++i) Caller(pool->self()).Write("not a greeting at all");
  WaitForRefusals(*pool, 20);
  CHECK_EQ(pool->refusals().newest.size(), 8u);
}

TEST(options_that_cannot_work_are_refused_by_name) {
  const auto refused = [](const std::function<void(LinkPoolOptions*)>& change) {
    LinkPoolOptions options = JobOptions();
    change(&options);
    Result<std::unique_ptr<LinkPool>> started = LinkPool::Start(options);
    CHECK(!started.ok());
    return started.status().message();
  };
  CHECK(refused([](auto* o) { o->job.clear(); }).find("job: expected 1 to 64 bytes") != std::string::npos);
  CHECK(refused([](auto* o) { o->secret = "short"; }).find("secret: expected at least 16") !=
        std::string::npos);
  CHECK(refused([](auto* o) { o->failure_timeout_s = 0; }).find("failure_timeout_s") != std::string::npos);
  CHECK(refused([](auto* o) { o->num_bulk_sockets = 99; }).find("num_bulk_sockets") != std::string::npos);
  CHECK(refused([](auto* o) { o->bind = {"node-7"}; }).find("numeric IPv4 or IPv6") != std::string::npos);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
