#include "comm/member.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>

namespace elastates {
namespace {

// "m1;<id, 16 hex digits>;<pid>;<host>;<local address>;<address>,<address>"
constexpr char kVersion[] = "m1";
constexpr size_t kNumFields = 6;
constexpr size_t kMaxLength = 4096;

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back().push_back(c);
    }
  }
  return parts;
}

bool IsPrintable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

// The whole text as a number of this base, or false.
bool ParseNumber(const std::string& text, int base, uint64_t* number) {
  if (text.empty() || text.front() == '-' || text.front() == '+') return false;
  char* end = nullptr;
  errno = 0;
  *number = std::strtoull(text.c_str(), &end, base);
  return errno == 0 && *end == '\0';
}

Status Malformed(const std::string& text, const std::string& why) {
  const std::string shown = text.size() > 100 ? text.substr(0, 100) + "..." : text;
  return Status(StatusCode::kInvalidArgument, "not the handle of a member, " + why + ": \"" + shown + "\"");
}

}  // namespace

std::string Encode(const Member& member) {
  char id[24];
  std::snprintf(id, sizeof(id), "%016" PRIx64, member.id);
  std::string text = std::string(kVersion) + ";" + id + ";" + std::to_string(member.pid) + ";" + member.host +
                     ";" + member.local_address + ";";
  for (size_t i = 0; i < member.addresses.size(); ++i) text += (i ? "," : "") + member.addresses[i];
  return text;
}

Result<Member> DecodeMember(const std::string& text) {
  if (text.size() > kMaxLength) return Malformed(text, "it is longer than 4096 characters");
  if (!IsPrintable(text)) return Malformed(text.substr(0, 20), "it has characters that do not print");
  const std::vector<std::string> fields = Split(text, ';');
  if (fields.size() != kNumFields || fields[0] != kVersion)
    return Malformed(text, "expected \"m1;id;pid;host;local address;addresses\"");
  Member member;
  uint64_t pid = 0;
  if (!ParseNumber(fields[1], 16, &member.id) || member.id == 0)
    return Malformed(text, "its id must be a hexadecimal number above 0");
  if (!ParseNumber(fields[2], 10, &pid) || pid > INT32_MAX) return Malformed(text, "its pid is no number");
  member.pid = static_cast<int>(pid);
  member.host = fields[3];
  member.local_address = fields[4];
  if (!fields[5].empty()) member.addresses = Split(fields[5], ',');
  return member;
}

}  // namespace elastates
