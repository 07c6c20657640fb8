// The library's error stack.
#include "hdf5_handle.hpp"

namespace fedpdpo::hdf5 {
namespace {

herr_t take_first(unsigned, const H5E_error2_t* error, void* text) {
  if (error->desc != nullptr) *static_cast<std::string*>(text) = error->desc;
  return 1;  // stops the walk
}

}  // namespace

void silence_library() { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

std::string last_error() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &text);
  return text.empty() ? "no reason given" : text;
}

}  // namespace fedpdpo::hdf5
