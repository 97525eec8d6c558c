// Graph: actors, the edges between them, and the lanes they run on.
//
//   Graph graph;
//   Lane& lane = graph.AddLane("copy-0");
//   auto& reader = graph.Add<Reader>(lane, path);
//   auto& summer = graph.Add<Summer>(lane);
//   graph.Connect(reader.out, summer.in);
//   graph.Start();
//   Status status = graph.Wait();  // every source has ended, every register is home
//
// Built by one thread. After Start() its methods may be called from any thread but those of its lanes.
// The edges must form no cycle: an actor ends when its inputs have ended.
#ifndef ELASTATES_ACTOR_GRAPH_H_
#define ELASTATES_ACTOR_GRAPH_H_

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "actor/actor.h"
#include "actor/job.h"
#include "actor/lane.h"
#include "actor/port.h"
#include "base/status.h"

namespace elastates {

class Graph {
 public:
  Graph() = default;
  ~Graph();  // Close()
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  Lane& AddLane(std::string name, Flush flush = Flush::kBatched);

  template <typename A, typename... Args>
  A& Add(Lane& lane, Args&&... args) {
    auto actor = std::make_unique<A>(std::forward<Args>(args)...);
    A& added = *actor;
    Adopt(std::move(actor), &lane);
    return added;
  }

  // Several producers may feed one in-port: it takes their registers in order of arrival.
  template <typename T>
  void Connect(Out<T>& from, In<T>& to) {
    ConnectPorts(&from, &to);
  }

  void Start();

  // Until every actor has ended. Returns the failure of the graph's own job, with the name of the actor.
  Status Wait();

  // Ends every source as soon as it is idle, waits until the graph has drained, joins the lanes. Idempotent.
  void Close();

  // Fails the graph's job: sources end now, what is under way drains.
  void Cancel(const Status& status);

  Job& job() { return job_; }
  bool closing() const { return closing_.load(std::memory_order_acquire); }

  // One line per actor: what it waits for and who holds its registers. Lanes that do not answer within
  // `timeout_s` are named with the actor they are busy with.
  std::string Describe(double timeout_s = 1.0);

 private:
  friend class Actor;

  void Adopt(std::unique_ptr<Actor> actor, Lane* lane);
  void ConnectPorts(OutPort* from, InPort* to);
  size_t PrepareActors();  // returns the most messages there can be
  void WakeSources();
  void OnActorRetired();
  void OnDescribed(const Actor& actor, std::string line);

  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<std::unique_ptr<Actor>> actors_;
  Job job_;
  bool started_ = false;
  std::atomic<bool> closing_{false};

  std::mutex mutex_;
  std::condition_variable changed_;
  size_t actors_left_ = 0;  // guarded by mutex_
  struct Description {
    const Actor* actor = nullptr;
    std::string line;  // empty: asked and not answered
  };
  std::vector<Description> descriptions_;  // guarded by mutex_
  std::mutex describe_mutex_;              // one Describe() at a time
  std::mutex close_mutex_;                 // one Close() at a time
};

}  // namespace elastates

#endif  // ELASTATES_ACTOR_GRAPH_H_
