// Small files: written by one thread in one go. Data files have FileSink.
#ifndef ELASTATES_STORAGE_SMALL_FILE_H_
#define ELASTATES_STORAGE_SMALL_FILE_H_

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

}  // namespace elastates

#endif  // ELASTATES_STORAGE_SMALL_FILE_H_
