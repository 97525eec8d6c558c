#include "engine/write.h"

namespace elastates {

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
    trace::Slice slice("open");
    slice.subject = {task.snapshot->id(), 0, task.plan().file_size};
    auto sink = FileSink::Create(task.plan().path, task.plan().file_size, sink_options_);
    if (!sink.ok()) return sink.status();
    task.sink = std::move(sink).value();
  }
  queue_.Submit({task.sink.get(), block.block.data(), block.range.size_bytes(), block.range.begin,
                 [completion = Defer(), counters = &counters_, subject = SubjectOf(task, block.range),
                  begin_ns = trace::Begin()](Status status) {
                   trace::End("write", begin_ns, subject);
                   if (status.ok())
                     counters->bytes_stored.fetch_add(subject.size_bytes, std::memory_order_relaxed);
                   completion.Complete(std::move(status));
                 }});
  return Status::Ok();
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
  Status status = task.sink->Finish();
  if (!status.ok()) return status;
  task.sink.reset();
  counters_.num_written.fetch_add(1, std::memory_order_relaxed);
  counters_.bytes_written.fetch_add(task.plan().file_size, std::memory_order_relaxed);
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
