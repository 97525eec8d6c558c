// Files that Python writes: small ones in one go, others piece by piece. Snapshots have FileSink.
#ifndef ELASTATES_STORAGE_SMALL_FILE_H_
#define ELASTATES_STORAGE_SMALL_FILE_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "storage/owned_fd.h"

namespace elastates {

// Creates `path`, which must not exist, with this content; durable once this returns, its name once the
// directory is synced. On failure an incomplete file may be left.
Status WriteSynced(const std::string& path, std::string_view content);

// Opens `path` for reading and writing; makes it, empty, if there is none.
Result<OwnedFd> OpenOrCreate(const std::string& path);

// Puts `content` in place of what the file holds; neither atomic nor durable. `path` is for messages.
Status Overwrite(int fd, const std::string& path, std::string_view content);

// Puts `content` at an offset of the open file, from any thread; not durable before SyncFile().
Status WriteAt(int fd, const std::string& path, std::string_view content, uint64_t offset);
Status SetLength(int fd, const std::string& path, uint64_t size_bytes);
Status SyncFile(int fd, const std::string& path);

}  // namespace elastates

#endif  // ELASTATES_STORAGE_SMALL_FILE_H_
