// The harness itself: every kind of failure must be seen, or every other native test proves nothing.
#include "check.h"

#include <thread>

#include "base/status.h"
#include "base/thread.h"

using elastates::NamedThread;
using elastates::Status;
using elastates::StatusCode;
namespace check = elastates::check;

namespace {

// Whether `body`, run as a test of its own, fails; takes back what that added to the count.
bool Fails(void (*body)()) {
  const int failed_before = check::FailedChecks().load();
  const bool failed = !check::RunOne({"(meant to fail)", body});
  check::FailedChecks().store(failed_before);
  return failed;
}

bool reached_after_failure = false;

}  // namespace

TEST(true_checks_pass) {
  CHECK(1 + 1 == 2);
  CHECK_EQ(std::string("a"), "a");
  CHECK_LT(1, 2);
  CHECK_OK(Status::Ok());
}

TEST(false_checks_fail) {
  CHECK(Fails([] { CHECK(false); }));
  CHECK(Fails([] { CHECK_EQ(1, 2); }));
  CHECK(Fails([] { CHECK_NE(StatusCode::kOk, StatusCode::kOk); }));
  CHECK(Fails([] { CHECK_OK(Status(StatusCode::kIoError, "this message is meant to be seen")); }));
  CHECK(Fails([] { throw std::runtime_error("thrown on purpose"); }));
}

TEST(a_failed_check_ends_its_test) {
  CHECK(Fails([] {
    CHECK(false);
    reached_after_failure = true;
  }));
  CHECK(!reached_after_failure);
}

TEST(a_failed_check_on_another_thread_fails_the_test) {
  CHECK(Fails([] { NamedThread("check-other", [] { CHECK_EQ(3, 4); }).Join(); }));
}

TEST(errno_values_keep_their_codes) {
  CHECK_EQ(Status::FromErrno(ENOSPC, "write").code(), StatusCode::kNoSpace);
  CHECK_EQ(Status::FromErrno(EDQUOT, "write").code(), StatusCode::kQuotaExceeded);
  CHECK_EQ(Status::FromErrno(EIO, "write").sys_errno(), EIO);
}

int main() { return RUN_ALL_TESTS(); }
