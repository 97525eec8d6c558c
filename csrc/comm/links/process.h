// Other processes of this host, held by pidfds: a name for a process that nobody else can get.
#ifndef ELASTATES_COMM_LINKS_PROCESS_H_
#define ELASTATES_COMM_LINKS_PROCESS_H_

#include "base/status.h"
#include "comm/links/socket.h"

namespace elastates {

// Readable once the process has ended. Asked of the socket where the kernel can tell (Linux 6.5), else by
// pid: then the socket must still be open after it, or the pid may have become somebody else's.
Result<OwnedFd> OpenPidfd(const Socket& socket, int pid);

bool HasEnded(int pidfd);
bool Exists(int pid);

// SIGKILL; Ok if it has ended already.
Status KillThrough(int pidfd);

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_PROCESS_H_
