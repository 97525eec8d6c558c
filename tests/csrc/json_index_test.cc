// JsonIndex: finds what a parser would find, and refuses what it cannot tell.
#include "base/json_index.h"

#include <string>

#include "check.h"

namespace elastates {
namespace {

JsonIndex IndexOf(std::string_view text) {
  Result<JsonIndex> built = JsonIndex::Build(text, "t");
  CHECK(built.ok());
  return std::move(built).value();
}

std::string ValueOf(const JsonIndex& index, std::string_view key) {
  const JsonMember* found = index.Find(key);
  return found == nullptr ? "absent" : std::string(found->value);
}

TEST(finds_every_kind_of_value) {
  const std::string text =
      R"({"a":{"t":[1]},"s":"}{","t":{"n":-1.5e3,"w":true,"s":"a\"}]{","l":[[],{"x":"]"}],"o":{},"":"e"},"z":1})";
  const JsonIndex index = IndexOf(text);
  CHECK_EQ(index.members().size(), 6u);
  CHECK_EQ(ValueOf(index, "n"), "-1.5e3");
  CHECK_EQ(ValueOf(index, "w"), "true");
  CHECK_EQ(ValueOf(index, "s"), R"("a\"}]{")");
  CHECK_EQ(ValueOf(index, "l"), R"([[],{"x":"]"}])");
  CHECK_EQ(ValueOf(index, "o"), "{}");
  CHECK_EQ(ValueOf(index, ""), "\"e\"");
  CHECK_EQ(ValueOf(index, "x"), "absent");
  CHECK_EQ(std::string(index.object().substr(0, 9)), R"({"n":-1.5)");
  CHECK_EQ(index.object().back(), '}');
}

TEST(white_space_is_allowed_wherever_json_allows_it) {
  const JsonIndex index = IndexOf(" {\n\"t\" : {\t\"a\" : 1 ,\r \"b\" : [ 2 ] } }");
  CHECK_EQ(ValueOf(index, "a"), "1");
  CHECK_EQ(ValueOf(index, "b"), "[ 2 ]");
  CHECK(IndexOf("{\"t\": { } }").members().empty());
}

TEST(of_a_key_that_comes_twice_the_last_is_found) {
  const JsonIndex index = IndexOf(R"({"t":{"a":1,"b":2,"a":3}})");
  CHECK_EQ(ValueOf(index, "a"), "3");
  CHECK_EQ(index.members().size(), 3u);
}

TEST(thousands_of_keys_are_all_found) {
  std::string text = "{\"t\":{";
  for (int i = 0; i < 5000; ++i)
    text += (i ? ",\"" : "\"") + std::to_string(i) + "\":[" + std::to_string(i) + "]";
  text += "}}";
  const JsonIndex index = IndexOf(text);
  for (int i = 0; i < 5000; ++i) {
    CHECK_EQ(ValueOf(index, std::to_string(i)), "[" + std::to_string(i) + "]");
  }
  CHECK_EQ(ValueOf(index, "5000"), "absent");
}

TEST(what_it_cannot_tell_is_refused) {
  for (const char* text : {"",
                           "[]",
                           "{}",
                           "{\"t\":[]}",
                           "{\"t\":1}",
                           "{\"u\":{}}",
                           "{\"t\" {}}",
                           "{\"t\":{\"a\"1}}",
                           "{\"t\":{\"a\":}}",
                           "{\"t\":{\"a\":,}}",
                           "{\"t\":{,}}",
                           "{\"t\":{\"a\":1,}}",
                           "{\"t\":{\"a\":\"}}",
                           "{\"t\":{\"a\":\"\\",
                           "{\"t\":{a:1}}",
                           "{\"t\":{\"a\\u0062\":1}}",
                           "{\"t\":{\"\xC3\xA9\":1}}",
                           "{\"t\":{\"a\tb\":1}}",
                           "{\"s\":1 2,\"t\":{}}",
                           "{\"t\":{\"a\":1 \"b\":2}}"}) {
    const Result<JsonIndex> built = JsonIndex::Build(text, "t");
    CHECK(!built.ok());
    CHECK(built.status().code() == StatusCode::kInvalidArgument);
  }
}

TEST(every_prefix_of_a_text_is_refused_or_whole) {
  const std::string text = R"({"a":[{"b":"\\\""}],"t":{"c":{"d":[0,"x"]},"e":null},"f":2})";
  const size_t whole = text.find(",\"f\"");
  for (size_t size = 0; size <= text.size(); ++size) {
    const std::string prefix = text.substr(0, size);  // its own memory: reading behind it is seen
    CHECK_EQ(JsonIndex::Build(prefix, "t").ok(), size >= whole);
  }
}

TEST(values_are_delimited_and_not_judged) {
  const JsonIndex index = IndexOf(R"({"t":{"a":[}, "b":nil, "c":{1 2}}})");
  CHECK_EQ(ValueOf(index, "a"), "[}");
  CHECK_EQ(ValueOf(index, "b"), "nil");
  CHECK_EQ(ValueOf(index, "c"), "{1 2}");
}

TEST(depth_costs_no_stack) {
  const std::string deep(1 << 20, '[');
  CHECK(!JsonIndex::Build("{\"t\":{\"a\":" + deep, "t").ok());
  const std::string closed = "{\"t\":{\"a\":" + deep + std::string(1 << 20, ']') + "}}";
  CHECK_EQ(ValueOf(IndexOf(closed), "a").size(), 2u << 20);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
