#include "comm/links/mailbox.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace elastates {
namespace {

std::string Describe(const MessageAddress& address) {
  return "epoch " + std::to_string(address.epoch) + ", operation " + std::to_string(address.sequence) +
         ", tag " + std::to_string(address.tag);
}

Status WrongLength(const MessageAddress& address, uint64_t sent_bytes, uint64_t posted_bytes) {
  return Status(StatusCode::kInvalidArgument, "a message of " + std::to_string(sent_bytes) +
                                                  " bytes came for a receive of " +
                                                  std::to_string(posted_bytes) + " (" + Describe(address) +
                                                  "): all members must pass the same sizes");
}

// Spreads the bits that differ: addresses of one operation differ in the tag alone.
uint64_t Mix(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15 + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccd;
}

}  // namespace

bool Mailbox::Key::operator==(const Key& other) const {
  return peer == other.peer && address.group == other.address.group && address.epoch == other.address.epoch &&
         address.tag == other.address.tag && address.sequence == other.address.sequence;
}

size_t Mailbox::KeyHash::operator()(const Key& key) const {
  const uint64_t epoch_and_tag = static_cast<uint64_t>(key.address.epoch) << 32 | key.address.tag;
  return Mix(Mix(Mix(key.peer, key.address.group), epoch_and_tag), key.address.sequence);
}

Status Mailbox::CheckCancelled(const MessageAddress& address) const {
  const auto found = cancelled_.find(address.group);
  const bool is_cancelled = found != cancelled_.end() && address.epoch <= found->second.first;
  return is_cancelled ? found->second.second : Status::Ok();
}

bool Mailbox::HasComplete(MemberId from, const MessageAddress& address) const {
  const auto found = entries_.find(Key{from, address});
  return found != entries_.end() && found->second.incoming != nullptr && found->second.incoming->IsComplete();
}

void Mailbox::Post(MemberId from, const MessageAddress& address, void* data, size_t size_bytes,
                   MessageDone done) {
  const auto found = entries_.try_emplace(Key{from, address}).first;
  Entry& entry = found->second;
  if (entry.is_posted)
    return done(Status(StatusCode::kInvalidArgument,
                       "two receives were posted for the same message (" + Describe(address) + ")"));
  entry.is_posted = true;
  entry.data = static_cast<char*>(data);
  entry.size_bytes = size_bytes;
  entry.done = std::move(done);
  if (entry.incoming != nullptr) Adopt(found);
}

// A message that came early gets its place: what is there is copied, the rest goes there by itself.
void Mailbox::Adopt(Entries::iterator found) {
  Entry& entry = found->second;
  Incoming& incoming = *entry.incoming;
  if (incoming.total_bytes != entry.size_bytes) return Refuse(found);
  if (incoming.high_water_bytes > 0) std::memcpy(entry.data, incoming.base, incoming.high_water_bytes);
  incoming.base = entry.data;
  incoming.heap.reset();
  if (incoming.IsComplete()) Finish(found, Status::Ok());
}

// The entry stays while slices may still come, so that they are not taken for another message.
void Mailbox::Refuse(Entries::iterator found) {
  Entry& entry = found->second;
  const Status why = WrongLength(found->first.address, entry.incoming->total_bytes, entry.size_bytes);
  entry.incoming->base = nullptr;
  entry.incoming->heap.reset();
  entry.incoming->refused = true;
  const MessageDone done = std::move(entry.done);
  entry.done = nullptr;
  if (entry.incoming->IsComplete()) entries_.erase(found);
  done(why);
}

// What should still come for a finished message is a peer's mistake, and must not be written anywhere.
void Mailbox::Finish(Entries::iterator found, const Status& status) {
  found->second.incoming->base = nullptr;
  const MessageDone done = std::move(found->second.done);
  entries_.erase(found);
  done(status);
}

// What a slice covers counts from its first byte: a receive that is posted meanwhile takes over the part of
// it that is there.
Mailbox::IncomingPtr Mailbox::Begin(MemberId from, const FrameHeader& slice, std::string* why) {
  IncomingPtr incoming = Join(from, slice, why);
  if (incoming != nullptr)
    incoming->high_water_bytes =
        std::max(incoming->high_water_bytes, slice.offset_bytes + slice.length_bytes);
  return incoming;
}

Mailbox::IncomingPtr Mailbox::Join(MemberId from, const FrameHeader& slice, std::string* why) {
  auto incoming = std::make_shared<Incoming>();
  incoming->from = from;
  incoming->address = slice.address;
  incoming->total_bytes = slice.total_bytes;
  if (!CheckCancelled(slice.address).ok()) return incoming;  // nobody wants it
  Entry& entry = entries_[Key{from, slice.address}];
  if (entry.incoming != nullptr) {
    if (entry.incoming->total_bytes == slice.total_bytes && !entry.incoming->IsComplete())
      return entry.incoming;
    *why = "it sent two messages of one address (" + Describe(slice.address) + ")";
    return nullptr;
  }
  entry.incoming = incoming;
  if (Place(incoming.get(), &entry)) return incoming;
  *why = "no memory for its message of " + std::to_string(slice.total_bytes) + " bytes";
  return nullptr;
}

bool Mailbox::Place(Incoming* incoming, Entry* entry) {
  if (entry->is_posted && incoming->total_bytes != entry->size_bytes) {
    const Key key{incoming->from, incoming->address};
    incoming->refused = true;
    const Status why = WrongLength(key.address, incoming->total_bytes, entry->size_bytes);
    const MessageDone done = std::move(entry->done);
    entry->done = nullptr;
    done(why);
  } else if (entry->is_posted) {
    incoming->base = entry->data;
  } else {
    incoming->heap.reset(new (std::nothrow) char[std::max<uint64_t>(incoming->total_bytes, 1)]);
    incoming->base = incoming->heap.get();
    return incoming->base != nullptr;
  }
  return true;
}

void Mailbox::End(const IncomingPtr& incoming, const FrameHeader& slice) {
  incoming->received_bytes += slice.length_bytes;
  if (!incoming->IsComplete()) return;
  const auto found = entries_.find(Key{incoming->from, incoming->address});
  if (found == entries_.end() || found->second.incoming != incoming) return;  // cancelled meanwhile
  if (incoming->refused) {
    entries_.erase(found);
  } else if (found->second.is_posted) {
    Finish(found, Status::Ok());
  }
}

// The callbacks come last: by then nothing here points to the bytes that they give back.
template <typename Matches>
void Mailbox::CompleteWhere(const Matches& matches, const Status& why, bool keep_complete) {
  std::vector<MessageDone> done;
  for (auto i = entries_.begin(); i != entries_.end();) {
    Entry& entry = i->second;
    const bool waits = !entry.is_posted && entry.incoming != nullptr && entry.incoming->IsComplete();
    if (!matches(i->first) || (keep_complete && waits)) {
      ++i;
      continue;
    }
    if (entry.incoming != nullptr) {
      entry.incoming->base = nullptr;
      entry.incoming->heap.reset();
    }
    if (entry.done) done.push_back(std::move(entry.done));
    i = entries_.erase(i);
  }
  for (const MessageDone& call : done) call(why);
}

void Mailbox::Cancel(uint64_t group, uint32_t epoch, const Status& why) {
  const auto [found, is_new] = cancelled_.try_emplace(group, epoch, why);
  if (!is_new && epoch > found->second.first) found->second = {epoch, why};
  CompleteWhere([&](const Key& key) { return key.address.group == group && key.address.epoch <= epoch; }, why,
                false);
}

void Mailbox::LosePeer(MemberId peer, const Status& why) {
  CompleteWhere([&](const Key& key) { return key.peer == peer; }, why, true);
}

void Mailbox::CompleteAll(const Status& why) {
  CompleteWhere([](const Key&) { return true; }, why, false);
}

}  // namespace elastates
