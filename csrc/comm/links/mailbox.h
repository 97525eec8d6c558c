// Mailbox: brings together what peers send and what this process has posted to receive.
//
// Of the pool's thread alone. A message that is expected is received right where it belongs; another one is
// kept in the heap until it is posted for, dropped when its epoch is cancelled.
#ifndef ELASTATES_COMM_LINKS_MAILBOX_H_
#define ELASTATES_COMM_LINKS_MAILBOX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "comm/links/frame.h"
#include "comm/messenger.h"

namespace elastates {

// A message on its way in. Its slices may come over several sockets at once.
struct Incoming {
  MemberId from = 0;
  MessageAddress address;
  uint64_t total_bytes = 0;
  uint64_t received_bytes = 0;
  uint64_t high_water_bytes = 0;  // no slice that has begun goes beyond
  char* base = nullptr;           // where it goes; null: nobody wants it any more
  std::unique_ptr<char[]> heap;   // set while it is unexpected
  bool refused = false;           // its receive was too short or too long: the rest is dropped

  bool IsComplete() const { return received_bytes == total_bytes; }
};

class Mailbox {
 public:
  using IncomingPtr = std::shared_ptr<Incoming>;

  // Whether a post of this address must fail now; ok: it need not. Cancelled epochs stay cancelled.
  Status CheckCancelled(const MessageAddress& address) const;

  // `done` may be called before this returns.
  void Post(MemberId from, const MessageAddress& address, void* data, size_t size_bytes, MessageDone done);
  // Whether a message of this address has arrived in full and waits.
  bool HasComplete(MemberId from, const MessageAddress& address) const;

  // A slice of a message begins; the message to give it to. Null, with `why`, if it contradicts what came
  // before.
  IncomingPtr Begin(MemberId from, const FrameHeader& slice, std::string* why);
  // All of a slice is there. Completes the receive with the last one.
  void End(const IncomingPtr& incoming, const FrameHeader& slice);

  void Cancel(uint64_t group, uint32_t epoch, const Status& why);
  // What is complete stays, the rest fails.
  void LosePeer(MemberId peer, const Status& why);
  void CompleteAll(const Status& why);

 private:
  struct Key {
    MemberId peer;
    MessageAddress address;
    bool operator==(const Key& other) const;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  struct Entry {
    bool is_posted = false;
    char* data = nullptr;
    size_t size_bytes = 0;
    MessageDone done;
    IncomingPtr incoming;
  };
  using Entries = std::unordered_map<Key, Entry, KeyHash>;

  IncomingPtr Join(MemberId from, const FrameHeader& slice, std::string* why);
  bool Place(Incoming* incoming, Entry* entry);
  void Adopt(Entries::iterator found);
  void Refuse(Entries::iterator found);
  void Finish(Entries::iterator found, const Status& status);
  template <typename Matches>
  void CompleteWhere(const Matches& matches, const Status& why, bool keep_complete);

  Entries entries_;
  std::unordered_map<uint64_t, std::pair<uint32_t, Status>> cancelled_;  // group -> up to which epoch, why
};

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_MAILBOX_H_
