// Who a process is to the others of its job.
#ifndef ELASTATES_COMM_MEMBER_H_
#define ELASTATES_COMM_MEMBER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace elastates {

// Random, drawn once per start of a process and never used again: a process that comes back is somebody else.
using MemberId = uint64_t;

struct Member {
  MemberId id = 0;
  // Equal on processes that can share memory and signal each other: boot id, network and process namespaces,
  // user. Two network namespaces of one machine are two hosts.
  std::string host;
  int pid = 0;
  std::vector<std::string> addresses;  // "10.0.0.7:4711", where it listens; the first that answers is taken
  std::string local_address;           // name of its socket for processes of the same host; empty: none

  bool operator==(const Member& other) const { return id == other.id; }
};

// One line of printable text, and back; kInvalidArgument names what is wrong with it.
std::string Encode(const Member& member);
Result<Member> DecodeMember(const std::string& text);

}  // namespace elastates

#endif  // ELASTATES_COMM_MEMBER_H_
