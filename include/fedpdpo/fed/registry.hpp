// The methods by name. To add one: its source file, and its line in registry.cpp.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/fed/method.hpp"
#include "fedpdpo/fed/options.hpp"

namespace fedpdpo {

struct MethodInfo {
  std::string name;
  std::string summary;  ///< one line for --help: what is shared, what is private
  std::string citation;
  /// Sets the options that this method has other defaults for; what the user gives explicitly wins over it.
  std::function<void(RunOptions&)> defaults;
  std::function<std::unique_ptr<FederatedMethod>(const RunOptions&)> make;
};

/// All methods, in the order of their registration.
const std::vector<MethodInfo>& methods();
/// Adds a method from outside of src/fed (a program of one's own, a test), before the command line is read.
void register_method(MethodInfo method);
/// The method of that name, or nullptr.
const MethodInfo* find_method(std::string_view name);

}  // namespace fedpdpo
