// Real processes that are killed, stopped and fenced, and what the others see of it.
#include <sys/mman.h>

#include <filesystem>

#include "comm_processes.h"

namespace elastates {
namespace {

// A member that does what it is told, one word a line; says "ok", or what went wrong.
class Puppet {
 public:
  explicit Puppet(const Arguments& arguments) {
    LinkPoolOptions options = arguments[0] == "local" ? JobOptions() : RemoteOptions(arguments[0]);
    segment_ = OwnedFd(memfd_create("segment", MFD_CLOEXEC));
    const std::string text = "segment of " + std::to_string(getpid());
    CHECK_EQ(write(segment_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    options.segment_fd = segment_.get();
    options.failure_timeout_s = 5;
    pool_ = StartPool(options);
    pool_->SetObserver(witness_.Observer());
    Say(Encode(pool_->self()));
  }

  void Run() {
    while (true) {
      std::istringstream words(Hear());
      std::string word;
      words >> word;
      if (word == "connect") Say(Connect(&words));
      if (word == "expect_death") Say(ExpectDeath(&words));
      if (word == "expect_loss") Say(witness_.WaitForLosses(1) ? Describe(witness_.losses[0]) : "no loss");
      if (word == "receive") Receive(&words);
      if (word == "send") SendMany(&words);
      if (word == "outcome") Say(Finish());
      if (word == "segment") Say(ReadSegment(&words));
      if (word == "kill") Say(Text(pool_->Kill(Id(&words))));
      if (word == "report") Say(Report(&words));
      if (word == "forget") Say(Forget(&words));
      if (word == "fork") Say(Fork());
      if (word == "fork_and_destroy") Say(ForkAndDestroy());
    }
  }

 private:
  static std::string Text(const Status& status) { return status.ok() ? "ok" : status.message(); }
  static MemberId Id(std::istringstream* words) {
    std::string handle;
    *words >> handle;
    return DecodeMember(handle).value().id;
  }
  static std::string Describe(const Witness::LossSeen& seen) {
    return (seen.loss == Loss::kDead ? "dead: " : "unreachable: ") + seen.why + " [" + seen.proof + "]";
  }

  std::string Connect(std::istringstream* words) {
    std::vector<Member> members;
    std::string handle;
    while (*words >> handle) members.push_back(DecodeMember(handle).value());
    return Text(pool_->Connect(members, kPatience_s));
  }
  std::string ExpectDeath(std::istringstream* words) {
    return witness_.WaitForDeath(Id(words)) ? "ok" : "it was not seen dead";
  }
  // As many messages of 70000 bytes as there were in SendMany().
  void Receive(std::istringstream* words) {
    const MemberId from = Id(words);
    size_t count = 0;
    *words >> count;
    places_.assign(count, std::string(kBytes, '?'));
    outcomes_ = std::vector<Outcome>(count);
    for (size_t i = 0; i < count; ++i)
      pool_->Receive(from, At(i), places_[i].data(), kBytes, outcomes_[i].Done());
    Say("ok");
  }
  std::string Finish() {
    for (size_t i = 0; i < outcomes_.size(); ++i) {
      const Status status = outcomes_[i].Wait();
      if (!status.ok())
        return std::to_string(i) + " of " + std::to_string(outcomes_.size()) + ": " + status.message();
      if (places_[i] != Pattern(kBytes, static_cast<unsigned>(i))) return "wrong bytes";
    }
    return "ok";
  }
  // Dies, if told so, with the kernel holding the messages.
  void SendMany(std::istringstream* words) {
    const MemberId to = Id(words);
    size_t count = 0;
    std::string then;
    *words >> count >> then;
    for (size_t i = 0; i < count; ++i) {
      const std::string message = Pattern(kBytes, static_cast<unsigned>(i));
      Outcome outcome;
      pool_->Send(to, At(i), message.data(), message.size(), outcome.Done());
      CHECK_OK(outcome.Wait());
    }
    if (then == "die") kill(getpid(), SIGKILL);
    Say("ok");
  }
  std::string ReadSegment(std::istringstream* words) {
    char text[64] = "";
    const int fd = pool_->PeerSegmentFd(Id(words));
    return fd >= 0 && pread(fd, text, sizeof(text) - 1, 0) > 0 ? text : "none";
  }
  std::string Report(std::istringstream* words) {
    const MemberId id = Id(words);
    const size_t before = witness_.losses.size();
    pool_->ReportDead(id, "its agent says so", "its vote");
    pool_->ReportDead(id, "its agent says so again", "another");
    if (!witness_.WaitForDeath(id)) return "not told";
    std::promise<void> after;
    pool_->RunLater(0, [&] { after.set_value(); });  // behind the second report
    after.get_future().wait();
    if (witness_.losses.size() != before + 1) return "told twice";
    return Describe(witness_.losses.back());
  }
  std::string Forget(std::istringstream* words) {
    const MemberId id = Id(words);
    pool_->Forget(id);
    std::promise<void> after;
    pool_->RunLater(0, [&] { after.set_value(); });
    after.get_future().wait();
    return pool_->PeerSegmentFd(id) == -1 ? "ok" : "still open";
  }
  // A child that lives on for as long as the test holds its pipe.
  static std::string Fork() {
    const pid_t pid = fork();
    if (pid == 0) {
      close(STDOUT_FILENO);
      char c;
      while (read(STDIN_FILENO, &c, 1) > 0) continue;
      _exit(0);
    }
    return std::to_string(pid);
  }

  // A child that ends as a program does, its copy of the pool first.
  std::string ForkAndDestroy() {
    const pid_t pid = fork();
    if (pid == 0) {
      const int reused = dup(STDIN_FILENO);  // gets the number of a socket that the child has closed
      pool_.reset();
      _exit(fcntl(reused, F_GETFD) >= 0 ? 0 : 1);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return status == 0 ? "ok" : "the child ended with " + std::to_string(status);
  }

  static constexpr size_t kBytes = 70000;
  Witness witness_;
  OwnedFd segment_;
  std::vector<std::string> places_;
  std::vector<Outcome> outcomes_;
  std::unique_ptr<LinkPool> pool_;  // last: it goes first
};

ROLE(puppet) { Puppet(arguments).Run(); }

// Members of the given hosts ("local": all together), linked to each other.
struct Job {
  std::vector<std::unique_ptr<MemberProcess>> processes;
  std::vector<std::string> handles;

  explicit Job(const std::vector<std::string>& hosts) {
    for (const std::string& host : hosts)
      processes.push_back(std::make_unique<MemberProcess>("puppet", Arguments{host}));
    std::string all = "connect";
    for (const auto& process : processes) handles.push_back(process->Ask());
    for (const std::string& handle : handles) all += " " + handle;
    for (const auto& process : processes) process->Tell(all);
    for (const auto& process : processes) CHECK_EQ(process->Ask(), "ok");
  }
  MemberProcess& at(size_t index) { return *processes[index]; }
  std::string Ask(size_t index, const std::string& word, size_t about) {
    return at(index).Ask(word + " " + handles[about]);
  }
};

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(a_killed_process_is_proven_dead_and_named) {
  Job job({"local", "local", "local"});
  CHECK_EQ(job.at(1).Ask("receive " + job.handles[0] + " 1"), "ok");
  job.at(0).Signal(SIGKILL);
  CHECK_EQ(job.Ask(1, "expect_death", 0), "ok");
  CHECK_EQ(job.Ask(2, "expect_death", 0), "ok");
  const std::string why = job.at(1).Ask("outcome");
  CHECK(Contains(why, "lost member"));
  CHECK(Contains(why, "process " + std::to_string(job.at(0).pid())));
}

TEST(a_broken_link_to_another_host_proves_nothing_until_an_agent_does) {
  Job job({"here", "there"});
  job.at(0).Signal(SIGKILL);
  CHECK(Contains(job.at(1).Ask("expect_loss"), "unreachable: "));
  CHECK_EQ(job.Ask(1, "report", 0), "dead: its agent says so [its vote]");
  CHECK(Contains(job.at(1).Ask("connect " + job.handles[0]), "lost member"));
}

TEST(a_stopped_process_is_not_lost_and_goes_on) {
  for (const std::string host : {"local", "there"}) {
    Job job({"local", host});
    job.at(0).Signal(SIGSTOP);
    CHECK_EQ(job.at(1).Ask("receive " + job.handles[0] + " 3"), "ok");
    job.at(1).Tell("outcome");
    job.at(0).Tell("send " + job.handles[1] + " 3 live");
    CHECK(job.at(1).IsSilent());
    job.at(0).Signal(SIGCONT);
    CHECK_EQ(job.at(1).Ask(), "ok");
  }
}

TEST(what_was_sent_before_a_death_arrives) {
  for (const std::string host : {"local", "there"}) {
    Job job({"local", host});
    job.at(0).Tell("send " + job.handles[1] + " 2 die");
    CHECK(WIFSIGNALED(job.at(0).WaitStatus()));
    CHECK_EQ(job.at(1).Ask("receive " + job.handles[0] + " 2"), "ok");
    CHECK_EQ(job.at(1).Ask("outcome"), "ok");
  }
}

TEST(a_fence_kills_a_stopped_peer_of_this_host_and_no_other) {
  Job job({"local", "local", "there"});
  job.at(0).Signal(SIGSTOP);
  CHECK_EQ(job.Ask(1, "kill", 0), "ok");
  CHECK_EQ(job.Ask(1, "expect_death", 0), "ok");
  CHECK_EQ(WTERMSIG(job.at(0).WaitStatus()), SIGKILL);
  CHECK_EQ(job.Ask(1, "kill", 0), "ok");  // it is dead: nobody else has got its name
  CHECK(Contains(job.Ask(1, "kill", 2), "is not a process of this host"));
}

TEST(a_segment_can_be_read_after_the_death_of_its_owner) {
  Job job({"local", "local", "there"});
  const std::string text = "segment of " + std::to_string(job.at(0).pid());
  CHECK_EQ(job.Ask(1, "segment", 0), text);
  CHECK_EQ(job.Ask(2, "segment", 0), "none");
  job.at(0).Signal(SIGKILL);
  CHECK_EQ(job.Ask(1, "expect_death", 0), "ok");
  CHECK_EQ(job.Ask(1, "segment", 0), text);
  CHECK_EQ(job.Ask(1, "forget", 0), "ok");
}

TEST(a_forked_child_does_not_keep_the_links_of_its_parent) {
  Job job({"here", "there"});
  const int child = std::stoi(job.at(0).Ask("fork"));
  job.at(0).Signal(SIGKILL);
  CHECK(Contains(job.at(1).Ask("expect_loss"), "unreachable: "));
  CHECK_EQ(kill(child, SIGKILL), 0);  // it was there all the time
}

TEST(a_forked_child_that_ends_leaves_the_links_alone) {
  Job job({"here", "there"});
  CHECK_EQ(job.at(0).Ask("fork_and_destroy"), "ok");
  CHECK_EQ(job.at(1).Ask("receive " + job.handles[0] + " 2"), "ok");
  CHECK_EQ(job.at(0).Ask("send " + job.handles[1] + " 2 live"), "ok");
  CHECK_EQ(job.at(1).Ask("outcome"), "ok");
}

TEST(many_processes_link_all_with_all_at_once) {
  Job job({"local", "local", "local", "there", "there", "elsewhere"});
  for (size_t i = 0; i < job.handles.size(); ++i)
    for (size_t j = 0; j < i; ++j) CHECK_EQ(job.at(i).Ask("receive " + job.handles[j] + " 1"), "ok");
  CHECK_EQ(job.at(0).Ask("send " + job.handles[5] + " 1 live"), "ok");
}

TEST(connecting_to_a_process_that_has_ended_fails_at_once) {
  auto gone = std::make_unique<MemberProcess>("puppet", Arguments{"local"});
  const std::string handle = gone->Ask();
  gone.reset();
  MemberProcess alive("puppet", {"local"});
  alive.Ask();
  const std::string why = alive.Ask("connect " + handle);
  CHECK(Contains(why, "no link to 1 of 1 members"));
  CHECK(Contains(why, "its process has ended"));
}

size_t CountDescriptors() {
  const std::filesystem::directory_iterator entries("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(entries), end(entries)));
}

TEST(many_deaths_leave_no_descriptors_behind) {
  Witness witness;
  const auto pool = StartPool(JobOptions());
  pool->SetObserver(witness.Observer());
  std::vector<size_t> counts;
  for (int i = 0; i < 8; ++i) {
    MemberProcess child("puppet", {i % 2 ? "local" : "there"});
    const Member member = DecodeMember(child.Ask()).value();
    CHECK_OK(pool->Connect({member}, kPatience_s));
    child.Signal(SIGKILL);
    CHECK(witness.WaitForLosses(static_cast<size_t>(i) + 1));
    pool->Forget(member.id);
    std::promise<void> after;
    pool->RunLater(0.001, [&] { after.set_value(); });
    after.get_future().wait();
    counts.push_back(CountDescriptors());
  }
  CHECK_EQ(counts.back(), counts[1]);  // the first of each kind may have opened something for good
}

}  // namespace
}  // namespace elastates

int main(int argc, char** argv) {
  return elastates::RunRoleOr(argc, argv, [] { return RUN_ALL_TESTS(); });
}
