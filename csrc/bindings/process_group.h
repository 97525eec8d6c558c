// ElasticProcessGroup: a process group whose rank and size are those of its group's newest view.
//
// Operations take the base class's way through the dispatcher to an ElasticBackend. torch's own fault
// tolerance contract (2.15) comes beside the edits in place: reconfigure() puts another group of the same
// links in the place of the old one, abort() is a revocation.
#ifndef ELASTATES_BINDINGS_PROCESS_GROUP_H_
#define ELASTATES_BINDINGS_PROCESS_GROUP_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "bindings/elastic_backend.h"

namespace elastates {

class ElasticProcessGroup : public c10d::ProcessGroup {
 public:
  ElasticProcessGroup(const c10::intrusive_ptr<c10d::Store>& store, std::shared_ptr<Endpoint> endpoint,
                      std::shared_ptr<QueuedGroup> group, std::chrono::milliseconds timeout);
  ~ElasticProcessGroup() override;

  std::shared_ptr<QueuedGroup> group() const;

  int getRank() const override { return awaits_ ? awaited_rank_ : group()->rank(); }
  int getSize() const override {
    return awaits_ ? awaited_size_ : static_cast<int>(group()->view()->members.size());
  }
  const std::string getBackendName() const override { return "elastic"; }
  void shutdown() override;
  void abort() override;

  // A group of some of its members, by rank; called by all, null on those who are not in it. Overrides the
  // base class's where that has the last parameter: not on torch 2.11, hence no keyword that says so.
  c10::intrusive_ptr<ProcessGroup> splitGroup(
      const std::vector<int>& ranks, const std::optional<std::chrono::milliseconds>& timeout,
      const std::optional<c10::intrusive_ptr<c10d::Backend::Options>>& options,
      const std::optional<std::string>& name, const std::optional<std::string>& about,
      const std::optional<std::vector<c10::Device>>& devices);

#ifdef C10D_BACKEND_HAS_RECONFIGURE
  // Of this rank and size, as torch told it, but of no use before the first reconfigure(). REQUIRES: the
  // group has this member alone.
  void Await(int rank, int size, const std::string& why);
  bool supportsReconfigure() const override { return true; }
  c10d::ReconfigureHandle get_reconfigure_handle() const override { return Encode(endpoint_->self()); }
  WorkPtr reconfigure(const c10d::ReconfigureOptions& options) override;
#endif

  // After an edit: gives torch a backend with the new rank and size.
  void Refresh() { Adopt(group()); }

 private:
  // Puts a group, maybe the same again, behind all operations.
  void Adopt(std::shared_ptr<QueuedGroup> group);
  c10::intrusive_ptr<ElasticBackend> backend() const;
  std::shared_ptr<QueuedGroup> MakeGroup(const std::string& name, View view);

  const std::shared_ptr<Endpoint> endpoint_;
  const std::string name_;  // of the group that it began with
  std::set<int64_t> used_uuids_;
  std::atomic<bool> awaits_{false};  // its first reconfigure()
  int awaited_rank_ = 0, awaited_size_ = 0;
  mutable std::mutex mutex_;
  c10::intrusive_ptr<ElasticBackend> backend_;  // guarded by mutex_
};

}  // namespace elastates

#endif  // ELASTATES_BINDINGS_PROCESS_GROUP_H_
