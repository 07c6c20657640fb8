// JSON reading with errors for people.
#include "fedpdpo/io/json.hpp"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"

namespace fedpdpo {
namespace {

// "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without its first word.
std::string_view without_code(std::string_view message) {
  const std::size_t end = message.find("] ");
  return message.starts_with("[json.exception") && end != std::string_view::npos ? message.substr(end + 2) : message;
}

std::string shown(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

template <class T>
constexpr const char* type_in_words = "";
template <>
constexpr const char* type_in_words<std::int64_t> = "an integer";
template <>
constexpr const char* type_in_words<double> = "a number";
template <>
constexpr const char* type_in_words<bool> = "true or false";
template <>
constexpr const char* type_in_words<std::string> = "a string";

template <class T>
std::optional<T> convert(const nlohmann::json& value) {
  if constexpr (std::is_same_v<T, std::int64_t>) {
    if (!value.is_number_integer()) return std::nullopt;
    if (value.is_number_unsigned() &&
        value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      return std::nullopt;
    }
    return value.get<std::int64_t>();
  } else if constexpr (std::is_same_v<T, double>) {
    return value.is_number() ? std::optional(value.get<double>()) : std::nullopt;
  } else if constexpr (std::is_same_v<T, bool>) {
    return value.is_boolean() ? std::optional(value.get<bool>()) : std::nullopt;
  } else {
    return value.is_string() ? std::optional(value.get<std::string>()) : std::nullopt;
  }
}

}  // namespace

nlohmann::json read_json(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto* begin = reinterpret_cast<const char*>(file.bytes().data());
  try {
    return nlohmann::json::parse(begin, begin + file.bytes().size());
  } catch (const nlohmann::json::exception& error) {
    throw InputError(path.string(), "", "valid JSON", without_code(error.what()));
  }
}

template <class T>
std::optional<T> json_optional(const nlohmann::json& object, std::string_view field,
                               const std::filesystem::path& file) {
  if (!object.is_object()) throw InputError(file.string(), field, "an object that may hold it", object.type_name());
  const auto found = object.find(std::string(field));
  if (found == object.end() || found->is_null()) return std::nullopt;
  const std::optional<T> value = convert<T>(*found);
  if (!value) throw InputError(file.string(), field, type_in_words<T>, shown(*found));
  return value;
}

template <class T>
T json_required(const nlohmann::json& object, std::string_view field, const std::filesystem::path& file) {
  const std::optional<T> value = json_optional<T>(object, field, file);
  if (!value) throw InputError(file.string(), field, type_in_words<T>, "nothing");
  return *value;
}

#define FEDPDPO_INSTANTIATE(T)                                                                                       \
  template std::optional<T> json_optional<T>(const nlohmann::json&, std::string_view, const std::filesystem::path&); \
  template T json_required<T>(const nlohmann::json&, std::string_view, const std::filesystem::path&);
FEDPDPO_INSTANTIATE(std::int64_t)
FEDPDPO_INSTANTIATE(double)
FEDPDPO_INSTANTIATE(bool)
FEDPDPO_INSTANTIATE(std::string)
#undef FEDPDPO_INSTANTIATE

}  // namespace fedpdpo
