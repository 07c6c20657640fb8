// JSON files, read with nlohmann::json; every error is an InputError that names file and field.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace fedpdpo {

/// Parses a file; InputError with line and column of the first mistake.
nlohmann::json read_json(const std::filesystem::path& path);

/// The object's field as T (std::int64_t, double, bool or std::string). A missing field gives nullopt; one of
/// another type is an InputError "FILE: FIELD: expected ..., found ...". JSON null counts as missing.
template <class T>
std::optional<T> json_optional(const nlohmann::json& object, std::string_view field, const std::filesystem::path& file);

/// The same, but a missing field is an InputError.
template <class T>
T json_required(const nlohmann::json& object, std::string_view field, const std::filesystem::path& file);

}  // namespace fedpdpo
