// Descriptors that a forked child closes before it does anything else. Lock-free, since a fork may come while
// another thread holds any lock. Children made by exec have close-on-exec for this.
#ifndef ELASTATES_COMM_LINKS_FORK_GUARD_H_
#define ELASTATES_COMM_LINKS_FORK_GUARD_H_

namespace elastates::fork_guard {

void Add(int fd);
void Remove(int fd);  // before it is closed

}  // namespace elastates::fork_guard

#endif  // ELASTATES_COMM_LINKS_FORK_GUARD_H_
