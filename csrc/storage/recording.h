// The record of what was done to the file system: tests rebuild from it every state that a power cut could
// have left.
//
// One log per process, in the order in which operations began; what is written is kept in memory with it, so
// it is for small files. While nothing is recorded and no death is set, an operation pays one relaxed load.
// Thread-safe.
#ifndef ELASTATES_STORAGE_RECORDING_H_
#define ELASTATES_STORAGE_RECORDING_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace elastates {

// One operation that changes the file system or makes a change durable.
struct FileOperation {
  std::string op;    // "create", "write", "fallocate", "ftruncate", "fsync", "fsync_directory", "mkdir",
                     // "rename", "link", "unlink", "rmdir"; "mark": a note of the caller's, not an operation
  std::string path;  // what it works on, as it is called at that moment; of a mark, its text
  std::string destination;  // the new name of "rename" and "link"
  uint64_t offset = 0;
  uint64_t size_bytes = 0;  // "write": asked for; "fallocate", "ftruncate": the length of the file
  std::string data;         // what "write" has been given
  int64_t result = 0;       // as of the system call: bytes written or 0; -errno
  uint64_t began_ns = 0;    // of CLOCK_MONOTONIC, which all processes of a machine share; these are unique
  uint64_t ended_ns = 0;    // within a process; 0: not ended when the log was taken
};

void StartRecording();                       // forgets what was recorded before
std::vector<FileOperation> TakeRecording();  // what was recorded so far; goes on
void StopRecording();                        // and forgets
void RecordMark(const std::string& text);

// The process kills itself (SIGKILL) when the nth operation from now, counted from 1, is about to begin.
// 0: never.
void DieBefore(uint64_t nth);

namespace recording {

inline std::atomic<bool> is_on{false};
inline bool IsOn() { return is_on.load(std::memory_order_relaxed); }

uint64_t Begin(FileOperation operation);  // a ticket for End(); 0: nothing is recorded
void End(uint64_t ticket, int64_t result);

}  // namespace recording
}  // namespace elastates

#endif  // ELASTATES_STORAGE_RECORDING_H_
