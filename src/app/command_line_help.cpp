// Help texts, made from the option table, the methods and the defaults of RunOptions.
#include <fmt/format.h>

#include <iterator>
#include <sstream>

#include "command_line_parts.hpp"
#include "fedpdpo/fed/registry.hpp"

namespace fedpdpo {
namespace {

constexpr std::size_t text_column = 28, width = 110;

// `left` in its column, then the words of `right`, wrapped.
void add_entry(std::string& out, std::string_view left, const std::string& right) {
  std::string line = fmt::format("  {}", left);
  if (line.size() + 1 > text_column) {
    out += line + "\n";
    line.clear();
  }
  line.resize(text_column, ' ');
  bool first = true;
  std::istringstream words(right);
  for (std::string word; words >> word; first = false) {
    if (!first && line.size() + 1 + word.size() > width) {
      out += line + "\n";
      line = std::string(text_column, ' ');
      first = true;
    }
    line += (first ? "" : " ") + word;
  }
  out += line + "\n";
}

constexpr const char* export_notes =
    "\nA folder is PEFT's: adapter_config.json and adapter_model.safetensors hold LoRA and the LLM head. Bottleneck "
    "and\n"
    "reward head are beside them in fedpdpo_modules.safetensors; analysis/load_client.py attaches them in Python. "
    "With\n"
    "--client all, OUT has a folder a client; with --client shared and several groups, one a group. Without --model "
    "the\n"
    "folder that the run read is taken. Models of clients come from checkpoints at the end of a round, not from those "
    "of a\n"
    "stop within one. --merge is needed where the method has added to the frozen weights (fedex-lora, flora).\n";

constexpr const char* evaluate_notes =
    "\nThe base model's numbers come first. Loss and precision are the run's, or what export noted, unless given here. "
    "Pairs\n"
    "are dealt to the ranks of mpirun; numbers do not depend on their number. --json - prints the figures instead of "
    "the\n"
    "table.\n";

std::string_view title(Section section) {
  switch (section) {
    case Section::input:
      return "Input";
    case Section::saved:
      return "Trained models";
    case Section::federation:
      return "Federation";
    case Section::modules:
      return "Trainable modules";
    case Section::loss:
      return "Loss";
    case Section::optimizer:
      return "Local training";
    case Section::execution:
      return "Execution";
    case Section::output:
      return "Output";
    case Section::bench:
      return "Benchmark";
  }
  return {};
}

std::map<std::string, std::string> default_texts() {
  std::map<std::string, std::string> texts = describe(RunOptions{});
  const BenchOptions bench;
  texts["shape"] = bench.shape;
  texts["tokens"] = bench.tokens;
  texts["pairs"] = std::to_string(bench.pairs.front());
  texts["repeats"] = std::to_string(bench.repeats);
  texts["warmup"] = std::to_string(bench.warmup);
  return texts;
}

std::string own_defaults(const MethodInfo& method) {
  RunOptions options;
  const auto common = describe(options);
  if (method.defaults) method.defaults(options);
  std::string text;
  for (const auto& [name, value] : describe(options)) {
    if (value != common.at(name)) text += fmt::format("{}--{} {}", text.empty() ? " [" : " ", name, value);
  }
  return text.empty() ? text : text + "]";
}

}  // namespace

std::string help_text() {
  std::string out =
      "fedpdpo: simulates federated, personalized preference optimization of language models\n\n"
      "usage: fedpdpo SUBCOMMAND [options]        `fedpdpo SUBCOMMAND --help` lists its options\n"
      "       mpirun -n RANKS fedpdpo run --model DIR --data pairs.h5 --out run.h5 [options]\n\nSubcommands\n";
  for (const CommandName& command : command_names()) add_entry(out, command.name, std::string(command.summary));
  out +=
      "\nExit codes: 0 done; 2 bad usage or input; 75 checkpointed on a signal, start again with --resume auto;\n"
      "1 anything else.\n";
  return out;
}

std::string help_text(Command command) {
  const CommandName& name = command_names()[static_cast<std::size_t>(command)];
  if (command == Command::help || command == Command::version) return help_text();
  std::string out = fmt::format("fedpdpo {}: {}\n\n", name.name, name.summary);
  if (command == Command::inspect) {
    return out +
           "usage: fedpdpo inspect PATH...\n\nA PATH is a run file, an evaluation file, a pair file, a model folder, "
           "an exported model or a folder of checkpoints, or one of them.\n";
  }
  out += fmt::format(
      "usage: fedpdpo {} {}\n", name.name,
      command == Command::run             ? "--model DIR --data FILE... --out FILE.h5 [options]"
      : command == Command::plan          ? "--model DIR --data FILE... [options]"
      : command == Command::partition     ? "--data FILE... [options]"
      : command == Command::export_models ? "--checkpoint DIR --client K|all|shared --out DIR [--merge] [options]"
      : command == Command::evaluate      ? "--model DIR --data FILE... [--checkpoint DIR | --adapter DIR] [options]"
                                          : "[--shape NAME | --model DIR] [options]");
  const std::map<std::string, std::string> defaults = default_texts();
  Section section = Section::bench;
  bool first = true;
  for (const OptionSpec& option : option_table()) {
    if (!accepts(command, option)) continue;
    if (first || option.section != section) out += fmt::format("\n{}\n", title(option.section));
    first = false;
    section = option.section;
    std::string text = option.help;
    const auto value = defaults.find(option.name);
    const std::string& shown = !option.fallback.empty()  ? option.fallback
                               : value != defaults.end() ? value->second
                                                         : option.fallback;
    if (!shown.empty()) text += fmt::format(" [{}]", shown);
    add_entry(out, fmt::format("--{} {}", option.name, placeholder_of(option, command)), text);
  }
  if (command == Command::export_models) return out + export_notes;
  if (command == Command::evaluate) return out + evaluate_notes;
  out += "\nMethods, each with the defaults that it changes\n";
  for (const MethodInfo& method : methods()) add_entry(out, method.name, method.summary + own_defaults(method));
  out += "\nLosses: ";
  for (const std::string_view loss : loss_names())
    out += fmt::format("{}{}", loss == loss_names().front() ? "" : ", ", loss);
  out += "\nThe command line wins over --config, which wins over a method's defaults.\n";
  return out;
}

}  // namespace fedpdpo
