// Model cards.
#include "model_card.hpp"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "command_line_parts.hpp"
#include "commands.hpp"
#include "fedpdpo/model/private_modules.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

std::string option(const ExportedModel& e, const std::string& name) {
  return e.federation.reader().fact("option." + name);
}

std::string title(const ExportedModel& e) {
  const std::string name = e.base.filename().string();
  if (e.client >= 0) return fmt::format("{}, client {} of a federation", name, e.client);
  return fmt::format("{}, what the clients of group {} share", name, e.group);
}

/// The client's test accuracy as the run recorded it; NaN where it did not.
double recorded_accuracy(const ExportedModel& e) {
  const auto nothing = std::nan("");
  if (e.client < 0 || !e.federation.reader().contains("history")) return nothing;
  const SafetensorsFile history = e.federation.reader().open("history");
  constexpr const char* series = "/clients/test/after/accuracy";
  if (!history.contains(series)) return nothing;
  const auto values = history.read<double>(series);
  const auto at = static_cast<std::size_t>(e.federation.rounds_done() * e.federation.num_clients() + e.client);
  return at < values.size() ? values[at] : nothing;
}

std::string contents(const ExportedModel& e) {
  const AdapterOptions& o = e.model.options;
  std::string text;
  const auto say = [&](const std::string& line) { text += "- " + line + "\n"; };
  if (e.merged) say("the weights of the whole model, with LoRA and the LLM head in them");
  if (!e.merged && o.lora_rank > 0)
    say(fmt::format("LoRA of rank {} (alpha {}) on {}", o.lora_rank, o.lora_alpha, o.lora_targets));
  if (!e.merged && o.head == HeadKind::full) say("the client's own LLM head, as a saved module");
  if (!e.merged && o.head == HeadKind::lowrank)
    say(fmt::format("the client's own change of the LLM head, as a LoRA of rank {} on it", o.head_rank));
  if (o.bottleneck > 0)
    say(
        fmt::format("a bottleneck adapter of width {} between the last norm and the LLM head ({}), which neither "
                    "PEFT nor transformers knows: without it this is another model",
                    o.bottleneck, modules_weights_name));
  if (o.reward_head) say(fmt::format("the explicit reward head ({})", modules_weights_name));
  return text;
}

std::string how_to_load(const ExportedModel& e) {
  if (has_private_modules(e.model))
    return "```python\nfrom load_client import load_client, score  # fedpdpo's analysis/load_client.py\n\n"
           "model = load_client(\"this/folder\")  # transformers" +
           std::string(e.merged ? "" : " and PEFT") +
           ", with the modules beside it\nlog_probs, rewards = score(model, input_ids, attention_mask, "
           "response_mask)\n```\n";
  if (e.merged)
    return "```python\nfrom transformers import AutoModelForCausalLM\n\n"
           "model = AutoModelForCausalLM.from_pretrained(\"this/folder\")\n```\n";
  return fmt::format(
      "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
      "base = AutoModelForCausalLM.from_pretrained(\"{}\")\n"
      "model = PeftModel.from_pretrained(base, \"this/folder\")\n```\n",
      e.base.string());
}

std::string front_matter(const ExportedModel& e) {
  return fmt::format(
      "---\nbase_model: {}\nlibrary_name: {}\npipeline_tag: text-generation\ntags:\n- dpo\n- federated{}\n---\n",
      json(e.base.string()).dump(-1, ' ', false, json::error_handler_t::replace), e.merged ? "transformers" : "peft",
      e.merged ? "" : "\n- lora");
}

}  // namespace

json provenance(const ExportedModel& e) {
  const SavedFederation& federation = e.federation;
  json loss = json::object();
  for (const OptionSpec& spec : option_table())
    if (spec.section == Section::loss) loss[spec.name] = option(e, spec.name);
  json model{{"kind", e.client >= 0 ? "client" : "shared"}, {"group", e.group}, {"merged", e.merged}};
  if (e.client >= 0) {
    model["client"] = e.client;
    model["name"] = federation.name_of(e.client);
    model["preferences_swapped"] = federation.is_flipped(e.client);
  }
  return {{"program", version_line()},
          {"base", {{"path", e.base.string()}, {"sha256", federation.reader().fact("sha256.model")}}},
          {"run",
           {{"method", option(e, "method")},
            {"clients", federation.num_clients()},
            {"round", federation.rounds_done()},
            {"rounds", federation.options().rounds},
            {"seed", option(e, "seed")},
            {"sha256_data", federation.reader().fact("sha256.data")}}},
          {"model", model},
          {"evaluation_point", "after"},
          {"loss", loss},
          {"precision", option(e, "precision")}};
}

std::string model_card(const ExportedModel& e) {
  const SavedFederation& federation = e.federation;
  std::string text = front_matter(e) + "\n# " + title(e) + "\n\n";
  text += fmt::format("Made by {} from `{}` after round {} of {}, with method {} and {} clients (seed {}).\n\n",
                      version_line(), federation.reader().folder().filename().string(), federation.rounds_done(),
                      federation.options().rounds, option(e, "method"), federation.num_clients(), option(e, "seed"));
  if (e.client >= 0) {
    text += fmt::format(
        "It is the personal model of client {} (`{}`, aggregation group {}) as the run evaluates it at the point "
        "`after`: the average that the client received, with what is its own.\n\n",
        e.client, federation.name_of(e.client), e.group);
    if (federation.is_flipped(e.client))
      text +=
          "This client's preferences were swapped in the run (`--flip-clients`): it prefers what the pair files "
          "say is rejected.\n\n";
    if (const double accuracy = recorded_accuracy(e); std::isfinite(accuracy))
      text += fmt::format("Accuracy on the client's own test pairs, as the run recorded it: {:.4f}\n\n", accuracy);
  } else {
    text += fmt::format(
        "It is what the clients of aggregation group {} share, on the pretrained LLM head and without "
        "private modules.\n\n",
        e.group);
  }
  text += "Here are:\n\n" + contents(e);
  text += fmt::format("- {}: where it comes from, and the loss that its margins are of\n\n", modules_config_name);
  text += "## Loading\n\n" + how_to_load(e);
  text += fmt::format("\nBase model: `{}`, content SHA-256 `{}`.\n", e.base.string(),
                      federation.reader().fact("sha256.model"));
  return text;
}

}  // namespace fedpdpo
