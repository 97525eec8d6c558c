#include "comm/links/outbox.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace elastates {

void Outbox::AddControl(FrameType type, std::string content) {
  control_.emplace_back(type, std::move(content));
}

void Outbox::AddMessage(const MessageAddress& address, const void* data, size_t size_bytes,
                        MessageDone done) {
  auto message = std::make_shared<Outgoing>();
  message->address = address;
  message->data = static_cast<const char*>(data);
  message->size_bytes = size_bytes;
  message->unsent_bytes = std::max<size_t>(size_bytes, 1);  // an empty one ends with its header
  message->done = std::move(done);
  (size_bytes <= kSmallMessageBytes ? small_ : bulk_).push_back(message);
  unfinished_.insert(std::move(message));
}

bool Outbox::Next(size_t socket, Frame* frame) {
  if (socket > 0) return NextOf(&bulk_, frame);
  if (control_.empty()) return NextOf(&small_, frame);
  FrameHeader header;
  header.type = control_.front().first;
  *frame = Frame();
  frame->owned = std::move(control_.front().second);
  control_.pop_front();
  frame->payload = frame->owned.data();
  frame->payload_bytes = frame->owned.size();
  header.length_bytes = static_cast<uint32_t>(frame->payload_bytes);
  EncodeFrameHeader(header, frame->header.data());
  return true;
}

bool Outbox::NextOf(std::deque<OutgoingPtr>* queue, Frame* frame) {
  if (queue->empty()) return false;
  const OutgoingPtr& message = queue->front();
  FillSlice(message, frame);
  if (message->begun_bytes == message->size_bytes) queue->pop_front();
  return true;
}

void Outbox::FillSlice(const OutgoingPtr& message, Frame* frame) {
  FrameHeader header;
  header.type = FrameType::kSlice;
  header.address = message->address;
  header.total_bytes = message->size_bytes;
  header.offset_bytes = message->begun_bytes;
  header.length_bytes =
      static_cast<uint32_t>(std::min(message->size_bytes - message->begun_bytes, kMaxSliceBytes));
  *frame = Frame();
  frame->payload = message->data + message->begun_bytes;
  frame->payload_bytes = header.length_bytes;
  frame->message = message;
  message->begun_bytes += header.length_bytes;
  EncodeFrameHeader(header, frame->header.data());
}

void Outbox::Sent(Frame* frame, size_t size_bytes) {
  frame->sent_bytes += size_bytes;
  if (frame->sent_bytes < frame->size_bytes() || frame->message == nullptr) return;
  const OutgoingPtr message = std::move(frame->message);
  message->unsent_bytes -= std::max<size_t>(frame->payload_bytes, 1);
  if (message->unsent_bytes > 0 || !message->done) return;
  unfinished_.erase(message);
  const MessageDone done = std::exchange(message->done, nullptr);
  done(Status::Ok());
}

void Outbox::Complete(const Matches& matches, const Status& why) {
  for (std::deque<OutgoingPtr>* queue : {&small_, &bulk_}) {
    const auto kept = std::remove_if(queue->begin(), queue->end(),
                                     [&](const OutgoingPtr& message) { return matches(*message); });
    queue->erase(kept, queue->end());
  }
  std::vector<MessageDone> done;
  for (auto i = unfinished_.begin(); i != unfinished_.end();) {
    if (!matches(**i)) {
      ++i;
      continue;
    }
    done.push_back(std::exchange((*i)->done, nullptr));
    i = unfinished_.erase(i);
  }
  for (const MessageDone& call : done) call(why);
}

}  // namespace elastates
