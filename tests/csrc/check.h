// A test harness in one header, for the native tests: plain programs that need neither torch nor a framework.
//
//   TEST(counts_to_two) { CHECK_EQ(1 + 1, 2); }
//   int main() { return RUN_ALL_TESTS(); }
//
// A failed check prints file, line and both values. On the thread that runs the test it ends that test
// (destructors run); on any other thread it is counted and the thread goes on, since nobody could catch what
// it throws. CHECK_FILTER=text in the environment runs only the tests whose names contain it.
#ifndef ELASTATES_TESTS_CSRC_CHECK_H_
#define ELASTATES_TESTS_CSRC_CHECK_H_

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace elastates::check {

struct TestFailed {};

struct TestCase {
  const char* name;
  void (*body)();
};

inline std::vector<TestCase>& Registry() {
  static std::vector<TestCase> cases;
  return cases;
}

inline std::atomic<int>& FailedChecks() {
  static std::atomic<int> count{0};
  return count;
}

inline std::thread::id& TestThread() {
  static std::thread::id id = std::this_thread::get_id();
  return id;
}

struct Registration {
  Registration(const char* name, void (*body)()) { Registry().push_back({name, body}); }
};

template <typename T, typename = void>
struct IsPrintable : std::false_type {};
template <typename T>
struct IsPrintable<T, std::void_t<decltype(std::declval<std::ostream&>() << std::declval<const T&>())>>
    : std::true_type {};

template <typename T>
std::string Describe(const T& value) {
  std::ostringstream out;
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else if constexpr (IsPrintable<T>::value) {
    out << std::boolalpha << value;
  } else {
    out << "a value of " << sizeof(T) << " bytes";
  }
  return out.str();
}

inline void Fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
  FailedChecks().fetch_add(1);
  if (std::this_thread::get_id() == TestThread()) throw TestFailed{};
}

template <typename A, typename B, typename Compare>
void CheckPair(const A& a, const B& b, Compare holds, const char* text, const char* file, int line) {
  if (!holds(a, b)) Fail(file, line, std::string(text) + ", with " + Describe(a) + " and " + Describe(b));
}

// For elastates::Status, and anything else with ok() and message().
template <typename S>
void CheckOk(const S& status, const char* text, const char* file, int line) {
  if (!status.ok()) Fail(file, line, std::string(text) + " is not ok: " + status.message());
}

inline bool RunOne(const TestCase& test) {
  const int failed_before = FailedChecks().load();
  try {
    test.body();
  } catch (const TestFailed&) {  // already printed and counted
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: threw: %s\n", test.name, error.what());
    FailedChecks().fetch_add(1);
  }
  const bool passed = FailedChecks().load() == failed_before;
  std::printf("[%s] %s\n", passed ? "ok" : "FAILED", test.name);
  std::fflush(stdout);
  return passed;
}

// Returns main's exit status: 0 if at least one test ran and all passed.
inline int RunAllTests() {
  const char* filter = std::getenv("CHECK_FILTER");
  TestThread() = std::this_thread::get_id();
  int num_passed = 0, num_failed = 0;
  for (const TestCase& test : Registry()) {
    if (filter != nullptr && std::string(test.name).find(filter) == std::string::npos) continue;
    (RunOne(test) ? num_passed : num_failed) += 1;
  }
  std::printf("%d tests passed, %d failed\n", num_passed, num_failed);
  return num_failed == 0 && num_passed > 0 ? 0 : 1;
}

}  // namespace elastates::check

#define TEST(name)                                                                           \
  static void CheckTest_##name();                                                            \
  static const ::elastates::check::Registration check_test_##name(#name, &CheckTest_##name); \
  static void CheckTest_##name()

#define RUN_ALL_TESTS() ::elastates::check::RunAllTests()

#define CHECK(cond)                                                   \
  do {                                                                \
    if (!(cond)) ::elastates::check::Fail(__FILE__, __LINE__, #cond); \
  } while (false)

#define ELASTATES_CHECK_PAIR(a, op, b)                                                         \
  ::elastates::check::CheckPair((a), (b), [](const auto& x, const auto& y) { return x op y; }, \
                                #a " " #op " " #b, __FILE__, __LINE__)

#define CHECK_EQ(a, b) ELASTATES_CHECK_PAIR(a, ==, b)
#define CHECK_NE(a, b) ELASTATES_CHECK_PAIR(a, !=, b)
#define CHECK_LT(a, b) ELASTATES_CHECK_PAIR(a, <, b)
#define CHECK_LE(a, b) ELASTATES_CHECK_PAIR(a, <=, b)
#define CHECK_GT(a, b) ELASTATES_CHECK_PAIR(a, >, b)
#define CHECK_GE(a, b) ELASTATES_CHECK_PAIR(a, >=, b)
#define CHECK_OK(status) ::elastates::check::CheckOk((status), #status, __FILE__, __LINE__)

#endif  // ELASTATES_TESTS_CSRC_CHECK_H_
