#include "engine/copy_affinity.h"

#include <sched.h>

namespace elastates {

// A refusal leaves the thread where it is: slower perhaps, never wrong.
void SpreadOverCores(int index, int num_threads) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  const int num_cores = CPU_COUNT(&allowed);
  if (num_cores < 2 || num_cores > num_threads) return;
  int skip = index % num_cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed) || skip-- > 0) continue;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(core, &own);
    (void)sched_setaffinity(0, sizeof(own), &own);
    return;
  }
}

}  // namespace elastates
