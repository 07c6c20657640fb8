// Parsing and checking of safetensors headers. The JSON is refused while it is read where it has a key twice or is
// nested deeper than the format, so that a hostile header cannot grow far beyond its own size in memory.
#include "safetensors_header.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

struct TypeInfo {
  StoredType type;
  std::string_view name;
  std::size_t size;
};
constexpr TypeInfo type_table[] = {
    {StoredType::f64, "F64", 8},      {StoredType::f32, "F32", 4}, {StoredType::f16, "F16", 2},
    {StoredType::bf16, "BF16", 2},    {StoredType::i64, "I64", 8}, {StoredType::i32, "I32", 4},
    {StoredType::u64, "U64", 8},      {StoredType::u32, "U32", 4}, {StoredType::u8, "U8", 1},
    {StoredType::boolean, "BOOL", 1},
};

const TypeInfo& info(StoredType type) {
  for (const TypeInfo& entry : type_table) {
    if (entry.type == type) return entry;
  }
  check(false, "unknown StoredType");
  return type_table[0];
}

constexpr int max_depth = 3;  // { tensor: { shape: [ ... ] } }

json parse_json(std::string_view text, const std::filesystem::path& file) {
  std::vector<std::set<std::string>> keys;
  const json::parser_callback_t watch = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        if (depth >= max_depth) throw InputError(file.string(), "header", "tensors", "deeper nesting than they have");
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        break;
      case json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!keys.back().insert(key).second) {
          throw InputError(file.string(), "header", "every name once", "'" + key + "' twice");
        }
        break;
      }
      default:
        break;
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::exception& error) {
    throw InputError(file.string(), "header", "valid JSON", error.what());
  }
}

std::string shown(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

class TensorParser {
 public:
  TensorParser(const std::string& name, const json& entry, const std::filesystem::path& file)
      : field_("tensor " + name), entry_(entry), file_(file) {}

  HeaderTensor parse(std::uint64_t data_size) const {
    if (!entry_.is_object()) fail("an object with dtype, shape and data_offsets", shown(entry_));
    HeaderTensor tensor;
    tensor.type = type();
    tensor.shape = shape();
    const json& offsets = member("data_offsets");
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      fail("data_offsets [begin, end]", shown(offsets));
    }
    tensor.begin = offsets[0].get<std::uint64_t>();
    tensor.end = offsets[1].get<std::uint64_t>();
    if (tensor.begin > tensor.end || tensor.end > data_size) {
      fail(fmt::format("data_offsets within the file's {} bytes of data", data_size), shown(offsets));
    }
    const std::optional<std::uint64_t> size = tensor_bytes(tensor.type, tensor.shape);
    if (!size) fail("a shape of at most 2^63 - 1 bytes", shape_text(tensor.shape));
    if (*size != tensor.end - tensor.begin) {
      fail(fmt::format("{} bytes for {} {}", *size, stored_type_name(tensor.type), shape_text(tensor.shape)),
           fmt::format("{} bytes", tensor.end - tensor.begin));
    }
    return tensor;
  }

 private:
  [[noreturn]] void fail(std::string_view expected, std::string_view found) const {
    throw InputError(file_.string(), field_, expected, found);
  }

  const json& member(const char* name) const {
    const auto found = entry_.find(name);
    if (found == entry_.end()) fail(name, "none");
    return *found;
  }

  StoredType type() const {
    const json& value = member("dtype");
    if (!value.is_string()) fail("dtype as a string", shown(value));
    const auto& name = value.get_ref<const std::string&>();
    for (const TypeInfo& entry : type_table) {
      if (entry.name == name) return entry.type;
    }
    fail("dtype F64, F32, F16, BF16, I64, I32, U64, U32, U8 or BOOL", name);
  }

  std::vector<std::int64_t> shape() const {
    const json& value = member("shape");
    if (!value.is_array()) fail("shape as a list", shown(value));
    std::vector<std::int64_t> shape;
    shape.reserve(value.size());
    for (const json& extent : value) {
      if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) {
        fail("a shape of non-negative integers", shown(value));
      }
      shape.push_back(extent.get<std::int64_t>());
    }
    return shape;
  }

  std::string field_;
  const json& entry_;
  const std::filesystem::path& file_;
};

// The tensors in order of their bytes must follow one another from the data's first byte to its last.
void check_coverage(const SafetensorsHeader& header, std::uint64_t data_size, const std::filesystem::path& file) {
  std::vector<std::pair<const std::string*, const HeaderTensor*>> order;
  for (const auto& [name, tensor] : header.tensors) order.emplace_back(&name, &tensor);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  std::uint64_t position = 0;
  for (const auto& [name, tensor] : order) {
    if (tensor->begin != position) {
      throw InputError(file.string(), "tensor " + *name, fmt::format("data from byte {}", position),
                       fmt::format("{} at byte {}", tensor->begin < position ? "an overlap" : "a hole", tensor->begin));
    }
    position = tensor->end;
  }
  if (position != data_size) {
    throw InputError(file.string(), "data", fmt::format("{} bytes", position), fmt::format("{} bytes", data_size));
  }
}

}  // namespace

std::size_t stored_type_size(StoredType type) { return info(type).size; }

std::string_view stored_type_name(StoredType type) { return info(type).name; }

std::optional<std::uint64_t> tensor_bytes(StoredType type, const std::vector<std::int64_t>& shape) {
  std::int64_t product = static_cast<std::int64_t>(stored_type_size(type));
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    if (extent == 0) {
      empty = true;  // goes on, so that the other extents are checked as well
    } else if (__builtin_mul_overflow(product, extent, &product)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : static_cast<std::uint64_t>(product);
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + "]";
}

SafetensorsHeader parse_safetensors_header(std::string_view text, std::uint64_t data_size,
                                           const std::filesystem::path& file) {
  if (!text.starts_with('{')) throw InputError(file.string(), "header", "JSON that begins with '{'", text.substr(0, 8));
  const json root = parse_json(text, file);
  SafetensorsHeader header;
  for (const auto& [name, entry] : root.items()) {
    if (name != "__metadata__") {
      header.tensors.emplace(name, TensorParser(name, entry, file).parse(data_size));
      continue;
    }
    if (!entry.is_object()) throw InputError(file.string(), name, "an object of strings", shown(entry));
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) throw InputError(file.string(), name + "." + key, "a string", shown(value));
      header.metadata.emplace(key, value.get<std::string>());
    }
  }
  check_coverage(header, data_size, file);
  return header;
}

}  // namespace fedpdpo
