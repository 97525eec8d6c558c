// ElasticProcessGroup: a process group whose rank and size are those of its group's newest view.
//
// Operations take the base class's way through the dispatcher to an ElasticBackend.
#ifndef ELASTATES_BINDINGS_PROCESS_GROUP_H_
#define ELASTATES_BINDINGS_PROCESS_GROUP_H_

#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "bindings/elastic_backend.h"

namespace elastates {

class ElasticProcessGroup : public c10d::ProcessGroup {
 public:
  ElasticProcessGroup(const c10::intrusive_ptr<c10d::Store>& store, std::shared_ptr<Endpoint> endpoint,
                      std::shared_ptr<QueuedGroup> group, std::chrono::milliseconds timeout);
  ~ElasticProcessGroup() override;

  const std::shared_ptr<QueuedGroup>& group() const { return group_; }

  int getRank() const override { return group_->rank(); }
  int getSize() const override { return static_cast<int>(group_->view()->members.size()); }
  const std::string getBackendName() const override { return "elastic"; }
  void shutdown() override;
  void abort() override;

  // After an edit: gives torch a backend with the new rank and size.
  void Refresh();

 private:
  void SetBackends(const c10::intrusive_ptr<ElasticBackend>& backend);

  const std::shared_ptr<Endpoint> endpoint_;
  const std::shared_ptr<QueuedGroup> group_;
  c10::intrusive_ptr<ElasticBackend> backend_;
};

}  // namespace elastates

#endif  // ELASTATES_BINDINGS_PROCESS_GROUP_H_
