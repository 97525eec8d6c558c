// Members that are processes of their own: this program started again in a role, spoken to by lines of text.
//
//   ROLE(echo) { std::string line; while (Hear(&line)) Say(line); }
//   MemberProcess child("echo");
//   child.Tell("hello"); child.Ask() == "hello"; child.Signal(SIGKILL);
//   int main(int argc, char** argv) { return RunRoleOr(argc, argv, [] { return RUN_ALL_TESTS(); }); }
#ifndef ELASTATES_TESTS_CSRC_COMM_PROCESSES_H_
#define ELASTATES_TESTS_CSRC_COMM_PROCESSES_H_

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "comm_links.h"
#include "storage/owned_fd.h"

namespace elastates {

using Arguments = std::vector<std::string>;
using RoleBody = void (*)(const Arguments&);

inline std::map<std::string, RoleBody>& Roles() {
  static std::map<std::string, RoleBody> roles;
  return roles;
}

struct RoleRegistration {
  RoleRegistration(const char* name, RoleBody body) { Roles()[name] = body; }
};

#define ROLE(name)                                                             \
  static void Role_##name(const ::elastates::Arguments&);                      \
  static const ::elastates::RoleRegistration role_##name(#name, &Role_##name); \
  static void Role_##name([[maybe_unused]] const ::elastates::Arguments& arguments)

inline bool ReadLine(int fd, std::string* line) {
  line->clear();
  char c = 0;
  while (read(fd, &c, 1) == 1) {
    if (c == '\n') return true;
    line->push_back(c);
  }
  return false;
}

inline void WriteLine(int fd, const std::string& line) {
  const std::string text = line + "\n";
  if (write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) _exit(4);
}

// Of a role, towards the test; a test that is gone takes its members with it.
inline void Say(const std::string& line) { WriteLine(STDOUT_FILENO, line); }
inline std::string Hear() {
  std::string line;
  if (!ReadLine(STDIN_FILENO, &line)) _exit(3);
  return line;
}

class MemberProcess {
 public:
  explicit MemberProcess(const std::string& role, const Arguments& arguments = {}) {
    int to[2], from[2];
    CHECK_EQ(pipe2(to, O_CLOEXEC), 0);
    CHECK_EQ(pipe2(from, O_CLOEXEC), 0);
    std::vector<std::string> words = {"/proc/self/exe", role};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(to[0], STDIN_FILENO);
      dup2(from[1], STDOUT_FILENO);
      execv(argv[0], argv.data());
      _exit(127);
    }
    CHECK(pid_ > 0);
    close(to[0]);
    close(from[1]);
    to_ = OwnedFd(to[1]);
    from_ = OwnedFd(from[0]);
  }
  ~MemberProcess() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  void Tell(const std::string& line) { WriteLine(to_.get(), line); }
  // The next line it says.
  std::string Ask() {
    pollfd poller{from_.get(), POLLIN, 0};
    CHECK_EQ(poll(&poller, 1, static_cast<int>(kPatience_s * 1e3)), 1);
    std::string line;
    CHECK(ReadLine(from_.get(), &line));
    return line;
  }
  std::string Ask(const std::string& line) {
    Tell(line);
    return Ask();
  }
  bool IsSilent() {
    pollfd poller{from_.get(), POLLIN, 0};
    return poll(&poller, 1, 0) == 0;
  }
  void Signal(int number) { CHECK_EQ(kill(pid_, number), 0); }
  // How it ended, as waitpid() says.
  int WaitStatus() {
    int status = 0;
    CHECK_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = 0;
    return status;
  }
  int pid() const { return pid_; }

 private:
  int pid_ = 0;
  OwnedFd to_, from_;
};

inline int RunRoleOr(int argc, char** argv, int (*tests)()) {
  signal(SIGPIPE, SIG_IGN);
  if (argc < 2) return tests();
  const auto found = Roles().find(argv[1]);
  if (found == Roles().end()) return 2;
  found->second(Arguments(argv + 2, argv + argc));
  return 0;
}

}  // namespace elastates

#endif  // ELASTATES_TESTS_CSRC_COMM_PROCESSES_H_
