// Where copy threads run, on a machine that has no core to spare for them.
//
// A trainer's parallel region lasts as long as its slowest thread. Where every core is training, copies take
// time from it whatever one does, and least if they take the same from each core: two copies that share a
// core make one training thread late and let the others spin. Measured on two cores, 768 MB at every step: a
// step grew by 5 % with one copy thread on each core, by 8 % where the kernel placed them.
#ifndef ELASTATES_ENGINE_COPY_AFFINITY_H_
#define ELASTATES_ENGINE_COPY_AFFINITY_H_

namespace elastates {

// Called by copy thread `index` of `num_threads`: gives it a core of its own if the process may use no more
// cores than there are copy threads. Elsewhere the kernel finds idle cores better than a fixed choice would.
void SpreadOverCores(int index, int num_threads);

}  // namespace elastates

#endif  // ELASTATES_ENGINE_COPY_AFFINITY_H_
