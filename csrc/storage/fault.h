// Injected faults: tests make one system call in storage/syscalls.cc fail, do less than it was asked, or
// wait.
//
// Compiled in always; while no fault is set, each system call pays one relaxed load. Thread-safe.
#ifndef ELASTATES_STORAGE_FAULT_H_
#define ELASTATES_STORAGE_FAULT_H_

#include <cstddef>
#include <optional>
#include <string>

namespace elastates {

struct Fault {
  // "open", "direct", "read", "write", "fallocate", "ftruncate", "fsync", "close", "rename", "link",
  // "unlink", "mkdir", "rmdir"; small files are written beside the data files and are counted apart:
  // "small_open", "small_write", "small_fsync"
  std::string op;
  int nth = 1;    // strikes at the nth such call from now, counted from 1 ...
  int times = 1;  // ... and at the next ones, so many in all
  int error = 0;  // errno to fail with; 0: none
  size_t short_by =
      0;  // without an error: a read or write is asked for this much less, but for 1 byte at least
  bool end_of_file = false;  // a read finds nothing more
  bool direct_only = false;  // counts only the calls on descriptors that have O_DIRECT
  bool hold = false;  // the call waits until ClearFault() or the next SetFault(), then goes on unharmed
};

void SetFault(Fault fault);  // replaces the one before
void ClearFault();
int NumFaultsStruck();  // since the last SetFault()

// Asked by syscalls.cc before each call: the fault that strikes this one. A held call waits in here.
std::optional<Fault> TakeFault(const char* op, int fd);

}  // namespace elastates

#endif  // ELASTATES_STORAGE_FAULT_H_
