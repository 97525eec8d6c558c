// Trace: what threads did, and when, recorded while somebody asks for it.
//
// Every thread that records has a ring of its own, made with its first record; one reader at a time drains
// them all. Neither side waits for the other: a full ring drops records and counts them. While recording is
// off, a hook costs one relaxed load. Times are steady_clock nanoseconds, which on Linux is Python's
// time.monotonic_ns(). All functions are thread-safe.
#ifndef ELASTATES_BASE_TRACE_H_
#define ELASTATES_BASE_TRACE_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace elastates::trace {

// What one record is about: a piece of one snapshot's file, as far as it applies.
struct Subject {
  uint64_t snapshot = 0;  // Snapshot::id()
  uint64_t chunk = 0;
  uint64_t size_bytes = 0;
};

struct Record {
  const char* what = nullptr;  // a string literal
  int64_t begin_ns = 0;
  int64_t end_ns = 0;  // a sample of a counter, whose value is subject.size_bytes: begin_ns
  Subject subject;
};

struct ThreadRecords {
  pid_t tid = 0;
  std::string thread_name;
  std::vector<Record> records;  // in the order in which they ended
  uint64_t num_dropped = 0;     // since the last drain
};

namespace internal {
extern std::atomic<bool> on;
int64_t NowNs();
void Push(const Record& record);
}  // namespace internal

// Records of earlier are dropped. False if recording was on already: somebody else is reading.
bool Start();
void Stop();
std::vector<ThreadRecords> Drain();

inline bool On() { return internal::on.load(std::memory_order_relaxed); }

// The begin of a slice that may end on another thread; 0 while recording is off.
inline int64_t Begin() { return On() ? internal::NowNs() : 0; }
inline void End(const char* what, int64_t begin_ns, const Subject& subject) {
  if (begin_ns != 0) internal::Push({what, begin_ns, internal::NowNs(), subject});
}

// A slice of the current thread, for the life of this object.
class Slice {
 public:
  explicit Slice(const char* what) : what_(what), begin_ns_(Begin()) {}
  Slice(const Slice&) = delete;
  Slice& operator=(const Slice&) = delete;
  ~Slice() { End(what_, begin_ns_, subject); }

  Subject subject;  // known by the time it ends

 private:
  const char* const what_;
  const int64_t begin_ns_;
};

// A sample of a counter. The time is taken first: so the sample with the latest time has the latest value.
template <typename Read>
void Count(const char* what, Read read) {
  if (const int64_t now_ns = Begin()) internal::Push({what, now_ns, now_ns, {0, 0, read()}});
}

}  // namespace elastates::trace

#endif  // ELASTATES_BASE_TRACE_H_
