// What is told of an evaluation, in run files and by `eval`.
#pragma once

#include "fedpdpo/train/evaluation.hpp"

namespace fedpdpo {

struct EvaluationMetric {
  const char* name;
  const char* units;
  const char* description;
  double Evaluation::*value;
};

inline constexpr EvaluationMetric evaluation_metrics[] = {
    {"loss", "nat", "mean loss", &Evaluation::loss},
    {"accuracy", "1", "share of pairs with margin above 0 (a tie counts one half)", &Evaluation::accuracy},
    {"accuracy_implicit", "1", "the same of the implicit margin alone", &Evaluation::accuracy_implicit},
    {"accuracy_explicit", "1", "the same of the explicit margin alone", &Evaluation::accuracy_explicit},
    {"margin", "nat", "mean of implicit + lambda explicit margin", &Evaluation::mean_margin},
    {"margin_implicit", "nat", "mean implicit margin", &Evaluation::mean_margin_implicit},
    {"margin_explicit", "nat", "mean explicit margin", &Evaluation::mean_margin_explicit},
    {"logp_chosen", "nat", "mean log-probability of the chosen response, summed over its tokens",
     &Evaluation::log_prob_chosen},
    {"logp_rejected", "nat", "mean log-probability of the rejected response, summed over its tokens",
     &Evaluation::log_prob_rejected},
    {"kl_to_reference", "nat/token",
     "mean over both responses of (log pi - log ref) per token: an estimate on the data's responses, not on samples",
     &Evaluation::kl_to_reference},
};

}  // namespace fedpdpo
