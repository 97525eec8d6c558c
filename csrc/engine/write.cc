#include "engine/write.h"

#include <memory>
#include <mutex>

namespace elastates {

// Completes the act when the last of its runs has been answered; the first failure is the act's.
class Write::PendingRuns {
 public:
  PendingRuns(size_t num_runs, Completion completion) : num_left_(num_runs), completion_(completion) {}

  void OnWritten(Status status) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (first_failure_.ok()) first_failure_ = std::move(status);
      if (--num_left_ > 0) return;
    }
    completion_.Complete(std::move(first_failure_));
  }

 private:
  std::mutex mutex_;
  size_t num_left_;       // guarded by mutex_
  Status first_failure_;  // guarded by mutex_ until num_left_ is 0
  const Completion completion_;
};

Write::Write(WriteQueue* queue, uint16_t depth, SinkOptions sink_options, Counters* counters)
    : Actor("write", depth),
      out(this, "blocks", depth),
      queue_(*queue),
      sink_options_(sink_options),
      counters_(*counters) {}

Status Write::Act() {
  const FilledBlock& block = in.Get();
  Task& task = *block.task;
  out.Emit().task = block.task;
  if (task.sink == nullptr) {
    if (Status status = Open(&task); !status.ok()) return status;
  }
  const std::vector<FileRun> runs = RunsToWrite(*task.snapshot, block.range);
  if (runs.empty()) return Status::Ok();
  auto pending = std::make_shared<PendingRuns>(runs.size(), Defer());
  for (const FileRun& run : runs) Submit(block, run, pending);
  return Status::Ok();
}

Status Write::Open(Task* task) const {
  trace::Slice slice("open");
  slice.subject = {task->snapshot->id(), 0, task->plan().file_size};
  SinkOptions options = sink_options_;
  options.preallocate = options.preallocate && task->plan().base == nullptr;  // else there would be no holes
  auto sink = FileSink::Create(task->plan().path, task->plan().file_size, options);
  if (!sink.ok()) return sink.status();
  task->sink = std::move(sink).value();
  return Status::Ok();
}

void Write::Submit(const FilledBlock& block, const FileRun& run, std::shared_ptr<PendingRuns> pending) {
  trace::Subject subject = SubjectOf(*block.task, block.range);
  subject.size_bytes = run.end - run.begin;
  block.task->bytes_to_write += subject.size_bytes;
  queue_.Submit({block.task->sink.get(), block.block.data() + (run.begin - block.range.begin),
                 subject.size_bytes, run.begin,
                 [pending = std::move(pending), counters = &counters_, subject,
                  begin_ns = trace::Begin()](Status status) {
                   trace::End("write", begin_ns, subject);
                   if (status.ok())
                     counters->bytes_stored.fetch_add(subject.size_bytes, std::memory_order_relaxed);
                   pending->OnWritten(std::move(status));
                 }});
}

Status Seal::Act() {
  Count();
  return Status::Ok();
}

void Seal::Count() {
  const TaskPtr& task = in.Get().task;
  trace::Slice slice("seal");
  slice.subject = {task->snapshot->id(), task->num_sealed, 0};
  if (++task->num_sealed == task->num_chunks.load(std::memory_order_acquire)) out.Emit().task = task;
}

Status Commit::Act() {
  Task& task = *in.Get().task;
  trace::Slice slice("sync");
  slice.subject = {task.snapshot->id(), 0, task.plan().file_size};
  Status status = task.sink->Finish(task.bytes_to_write);
  if (!status.ok()) return status;
  task.sink.reset();
  counters_.num_written.fetch_add(1, std::memory_order_relaxed);
  counters_.bytes_written.fetch_add(task.bytes_to_write, std::memory_order_relaxed);
  task.snapshot->MarkFinished();
  return status;
}

void Commit::Drain() {
  Task& task = *in.Get().task;
  task.sink.reset();
  counters_.num_failed.fetch_add(1, std::memory_order_relaxed);
  task.snapshot->MarkFinished();
}

}  // namespace elastates
