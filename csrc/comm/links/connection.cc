#include "comm/links/connection.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace elastates {
namespace {

constexpr size_t kBufferBytes = size_t{64} << 10;
constexpr size_t kMaxBatchFrames = 16;
constexpr size_t kMaxBatchBytes = size_t{1} << 20;
// Per turn of one socket, so that all get theirs.
constexpr int kMaxReadsPerTurn = 16;
constexpr int kMaxWritesPerTurn = 8;

// Bytes of dropped messages; what it holds is never read.
char* DropPlace() {
  static thread_local std::vector<char> place(kMaxSliceBytes);
  return place.data();
}

}  // namespace

Connection::Connection(EventLoop* loop, Owner* owner, Outbox* outbox, size_t index, Socket socket)
    : loop_(loop),
      owner_(owner),
      outbox_(outbox),
      index_(index),
      socket_(std::move(socket)),
      buffer_(kBufferBytes) {}

Status Connection::Start() { return loop_->Watch(socket_.get(), EPOLLIN, this); }

void Connection::Close() {
  if (!is_open()) return;
  loop_->Unwatch(socket_.get(), this);
  socket_.Close();
}

void Connection::Break(const std::string& why) {
  if (!is_open()) return;
  Close();
  owner_->OnBroken(this, why);
}

void Connection::OnReady(uint32_t events) {
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
    for (int reads = 0; reads < kMaxReadsPerTurn; ++reads)
      if (ReadSome() != Progress::kMore) break;
  }
  if (is_open() && (events & EPOLLOUT)) Write();
}

void Connection::ReadAll() {
  while (is_open()) {
    const Progress progress = ReadSome();
    if (progress == Progress::kDrained || progress == Progress::kBroken) return;
  }
}

// One call for the rest of a payload and, behind it, the beginnings of what follows.
Connection::Progress Connection::ReadSome() {
  if (!is_open()) return Progress::kBroken;
  iovec parts[2];
  size_t num_parts = 0, direct = 0;
  if (in_frame_) {  // then the buffer is empty
    direct = payload_left();
    parts[num_parts++] = {PayloadPlace(), direct};
  }
  parts[num_parts++] = {buffer_.data() + buffer_end_, buffer_.size() - buffer_end_};
  const ssize_t received = Receive(socket_, parts, num_parts);
  if (received == -EINTR) return Progress::kMore;
  if (received == -EAGAIN) return Progress::kDrained;
  if (received <= 0) {
    Break(received == 0 ? "it closed the connection" : std::strerror(static_cast<int>(-received)));
    return Progress::kBroken;
  }
  const size_t asked = direct + buffer_.size() - buffer_end_;
  const size_t to_payload = std::min(direct, static_cast<size_t>(received));
  buffer_end_ += static_cast<size_t>(received) - to_payload;
  payload_done_ += to_payload;
  if (in_frame_ && payload_left() == 0) EndFrame();
  if (!ConsumeBuffered()) return Progress::kBroken;
  return static_cast<size_t>(received) < asked ? Progress::kShort : Progress::kMore;
}

// Frames from the buffer, until it holds less than a header; false: broken.
bool Connection::ConsumeBuffered() {
  while (is_open()) {
    if (in_frame_) {
      buffer_begin_ += TakePayload(buffer_.data() + buffer_begin_, buffered());
      if (payload_left() > 0) break;
      EndFrame();
    } else if (buffered() >= kFrameHeaderBytes) {
      if (!BeginFrame()) return false;
    } else {
      break;
    }
  }
  if (!is_open()) return false;
  std::memmove(buffer_.data(), buffer_.data() + buffer_begin_, buffered());  // less than a header
  buffer_end_ = buffered();
  buffer_begin_ = 0;
  return true;
}

bool Connection::BeginFrame() {
  std::string why;
  if (!DecodeFrameHeader(buffer_.data() + buffer_begin_, &header_, &why)) {
    Break("it sent " + why);
    return false;
  }
  buffer_begin_ += kFrameHeaderBytes;
  payload_done_ = 0;
  if (header_.type == FrameType::kSlice) {
    incoming_ = owner_->OnSliceBegin(header_, &why);
    if (incoming_ == nullptr) {
      Break(why);
      return false;
    }
  } else {
    control_.resize(header_.length_bytes);
  }
  in_frame_ = true;
  return true;
}

void Connection::EndFrame() {
  in_frame_ = false;
  if (header_.type == FrameType::kSlice) {
    const Mailbox::IncomingPtr incoming = std::move(incoming_);
    owner_->OnSliceEnd(incoming, header_);
  } else {
    owner_->OnFrame(header_.type, std::move(control_));
    control_.clear();
  }
}

// Asked anew for every read: a message may be posted for, or cancelled, while it arrives.
char* Connection::PayloadPlace() {
  if (header_.type != FrameType::kSlice) return control_.data() + payload_done_;
  if (incoming_->base == nullptr) return DropPlace();
  return incoming_->base + header_.offset_bytes + payload_done_;
}

size_t Connection::TakePayload(const char* from, size_t available) {
  const size_t taken = std::min(available, payload_left());
  if (taken > 0) std::memcpy(PayloadPlace(), from, taken);
  payload_done_ += taken;
  return taken;
}

void Connection::Write() {
  for (int writes = 0; writes < kMaxWritesPerTurn && is_open(); ++writes) {
    FillBatch();
    if (batch_.empty()) return WaitForRoom(false);
    if (!WriteSome()) return;
  }
  if (is_open()) WaitForRoom(true);  // its next turn comes when the others have had theirs
}

void Connection::FillBatch() {
  size_t total = 0;
  for (const Frame& frame : batch_) total += frame.size_bytes();
  Frame frame;
  while (batch_.size() < kMaxBatchFrames && total < kMaxBatchBytes && outbox_->Next(index_, &frame)) {
    total += frame.size_bytes();
    batch_.push_back(std::move(frame));
    Frame& stored = batch_.back();
    if (stored.message == nullptr) stored.payload = stored.owned.data();  // a short text moves with its frame
  }
}

// False: the kernel takes no more for now, or the connection broke.
bool Connection::WriteSome() {
  iovec parts[2 * kMaxBatchFrames];
  size_t num_parts = 0;
  for (Frame& frame : batch_) {
    const size_t header_sent = std::min(frame.sent_bytes, frame.header.size());
    const size_t payload_sent = frame.sent_bytes - header_sent;
    if (header_sent < frame.header.size())
      parts[num_parts++] = {frame.header.data() + header_sent, frame.header.size() - header_sent};
    if (payload_sent < frame.payload_bytes)
      parts[num_parts++] = {const_cast<char*>(frame.payload) + payload_sent,
                            frame.payload_bytes - payload_sent};
  }
  const ssize_t sent = Send(socket_, parts, num_parts);
  if (sent == -EINTR) return true;
  if (sent == -EAGAIN) {
    WaitForRoom(true);
    return false;
  }
  if (sent < 0) {
    ReadAll();  // what it said before it left is still there
    Break(std::strerror(static_cast<int>(-sent)));
    return false;
  }
  CountSent(static_cast<size_t>(sent));
  return true;
}

void Connection::CountSent(size_t size_bytes) {
  while (size_bytes > 0) {
    Frame& frame = batch_.front();
    const size_t of_this = std::min(size_bytes, frame.size_bytes() - frame.sent_bytes);
    size_bytes -= of_this;
    outbox_->Sent(&frame, of_this);
    if (frame.sent_bytes == frame.size_bytes()) batch_.pop_front();
  }
}

void Connection::WaitForRoom(bool wait) {
  if (wait == waits_for_room_) return;
  waits_for_room_ = wait;
  const Status status = loop_->Rewatch(socket_.get(), wait ? EPOLLIN | EPOLLOUT : EPOLLIN, this);
  if (!status.ok()) Break(status.message());
}

void Connection::Release(const Outbox::Matches& matches) {
  std::deque<Frame> kept;
  for (Frame& frame : batch_) {
    const bool is_released = frame.message != nullptr && matches(*frame.message);
    if (is_released && frame.sent_bytes == 0) continue;
    kept.push_back(std::move(frame));
    Frame& stored = kept.back();
    if (is_released) {
      stored.owned.assign(stored.payload, stored.payload_bytes);
      stored.message = nullptr;
    }
    if (stored.message == nullptr) stored.payload = stored.owned.data();
  }
  batch_.swap(kept);  // elements stay where they are
}

}  // namespace elastates
