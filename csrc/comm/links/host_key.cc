#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cctype>
#include <fstream>
#include <string>

#include "comm/link_pool.h"

namespace elastates {
namespace {

std::string BootId() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return id.empty() ? "unknown" : id.substr(0, 13);
}

std::string NamespaceId(const char* name) {
  struct stat entry{};
  const std::string path = std::string("/proc/self/ns/") + name;
  return stat(path.c_str(), &entry) == 0 ? std::to_string(entry.st_ino) : "0";
}

// For people who read it; what tells hosts apart follows.
std::string NodeName() {
  utsname names{};
  uname(&names);
  std::string name(names.nodename);
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '-';
  return name.substr(0, 40);
}

}  // namespace

std::string ThisHost() {
  return NodeName() + "/" + BootId() + "/" + NamespaceId("net") + "/" + NamespaceId("pid") + "/" +
         std::to_string(geteuid());
}

}  // namespace elastates
