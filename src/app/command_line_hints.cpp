// What a word meant that is no option: another program's name for one of this program's, else the nearest name.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "command_line_parts.hpp"

namespace fedpdpo {
namespace {

struct ForeignName {
  std::string_view word, option, note;
};

constexpr std::string_view steps_note = ": local steps of a round, there are no local epochs";
constexpr std::string_view rate_note = " of LoRA, or lr-private of the private modules";
constexpr std::array<ForeignName, 13> foreign_names{{{"epochs", "steps", steps_note},
                                                     {"local-epochs", "steps", steps_note},
                                                     {"num-epochs", "steps", steps_note},
                                                     {"num-rounds", "rounds", ""},
                                                     {"num-clients", "clients", ""},
                                                     {"learning-rate", "lr-shared", rate_note},
                                                     {"lr", "lr-shared", rate_note},
                                                     {"batch-size", "batch", ""},
                                                     {"output-dir", "out", ": the run file, *.h5"},
                                                     {"output", "out", ": the run file, *.h5"},
                                                     {"alpha-lora", "lora-alpha", ""},
                                                     {"lora-r", "lora-rank", ""},
                                                     {"rank", "lora-rank", ""}}};

constexpr std::array<std::string_view, 7> text_extensions{".jsonl", ".json", ".parquet", ".csv", ".tsv", ".gz", ".txt"};

}  // namespace

std::string option_suggestion(const std::string& word, const std::vector<std::string>& options,
                              std::string_view prefix) {
  std::string name = word;
  std::replace(name.begin(), name.end(), '_', '-');
  for (const ForeignName& foreign : foreign_names) {
    if (foreign.word == name && std::find(options.begin(), options.end(), foreign.option) != options.end())
      return fmt::format(" (did you mean {}{}{}?)", prefix, foreign.option, foreign.note);
  }
  return suggestion(word, options, prefix);
}

void require_pair_file_name(const Given& given, const std::filesystem::path& file) {
  std::error_code ignored;
  const std::string extension = file.extension().string();
  if (std::find(text_extensions.begin(), text_extensions.end(), extension) != text_extensions.end())
    throw given.error("pair files, *.h5, which data_prep/prepare.py makes of text", file.string());
  if (file.string().find(',') != std::string::npos && !std::filesystem::exists(file, ignored))
    throw given.error("files separated by blanks", file.string());
}

}  // namespace fedpdpo
