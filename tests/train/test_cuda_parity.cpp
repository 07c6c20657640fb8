// Whole training steps of fedpdpo on tiny models, CUDA against the CPU: gradients, values, sums, margins and
// embeddings, within the table of tolerances (backend/tolerances.hpp).
#include <algorithm>

#include "backend/tolerances.hpp"
#include "parity_backend.hpp"
#include "trainer_kit.hpp"

namespace fedpdpo::test {
namespace {

/// What a few steps and an evaluation leave, on the host.
struct Outcome {
  std::vector<float> gradients, values, embeddings;  // of all clients, one after another
  std::vector<double> margins;
  double loss = 0, gradient_norm = 0, kl = 0;
};

struct Case {
  std::string model;
  AdapterOptions adapter;
  DType dtype = DType::f32;
};

std::string name_of(const Case& one) {
  const AdapterOptions& a = one.adapter;
  return std::string(one.model) + ", " + dtype_name(one.dtype) +
         (a.bottleneck_kind == BottleneckKind::gated ? ", gated, low-rank head" : "") +
         (a.lora_dropout > 0 ? ", dropout, frozen head" : "");
}

constexpr int num_clients = 2;

Outcome run(const Case& one, Backend& backend, bool as_a_cohort, int micro_rows = 1024, Graphs graphs = Graphs::never,
            int steps = 2) {
  GoldenModel model(one.model, one.dtype);  // its weights lie in host memory
  const ModelConfig& config = model.folder.config();
  std::shared_ptr<void> owner;
  const Weights weights = place_weights(backend, config, one.dtype, static_cast<std::byte*>(model.memory.get()), owner);
  const PairSet pairs = random_pairs(6, 3, config.vocab_size);
  const std::vector<ClientPair> train = with_reference(model, pairs);
  const ParameterLayout layout(config, one.adapter, {});
  Policy policy(backend, config, weights, layout);
  ClientBuffers buffers(backend, layout, num_clients);
  TrainerOptions options = smooth_options();
  options.micro_rows = micro_rows;
  options.graphs = graphs;
  LocalTrainer trainer(backend, pairs, layout, policy, buffers, options, num_clients);

  const std::size_t size = layout.size();
  std::vector<ClientState> states(num_clients);
  std::vector<ClientData> data(num_clients);
  std::vector<Member> members;
  Outcome outcome;
  outcome.gradients.resize(num_clients * size);
  outcome.values.resize(num_clients * size);
  const auto at = [&](std::vector<float>& all, int client) {
    return all.data() + static_cast<std::size_t>(client) * size;
  };
  for (int c = 0; c < num_clients; ++c) {
    states[static_cast<std::size_t>(c)].client = data[static_cast<std::size_t>(c)].client = c;
    states[static_cast<std::size_t>(c)].slot = c;
    std::vector<float> start(size);
    layout.initialize(4, c, weights.head, start);
    RandomStream random({.seed = 21, .purpose = Purpose::test, .client = static_cast<std::uint32_t>(c)});
    for (float& x : start) x += static_cast<float>(0.1 * random.normal());
    backend.copy_to_device(buffers.values(states[static_cast<std::size_t>(c)]).data, start.data(),
                           size * sizeof(float));
    members.push_back({&states[static_cast<std::size_t>(c)], &data[static_cast<std::size_t>(c)], train});
  }
  const LocalTrainer::Hooks hooks{[&](const Member& member, View, View gradient) {
                                    backend.copy_to_host(at(outcome.gradients, member.state->client), gradient.data,
                                                         size * sizeof(float));
                                  },
                                  nullptr};
  for (int step = 0; step < steps; ++step) {
    if (as_a_cohort) {
      trainer.step(members, 1, all_groups, hooks);
    } else {
      for (const Member& member : members) trainer.step(std::span(&member, 1), 1, all_groups, hooks);
    }
    for (ClientState& state : states) ++state.steps_done;
  }
  std::vector<EvaluatedModel> evaluated;
  for (const ClientState& state : states) {
    backend.copy_to_host(at(outcome.values, state.client), buffers.values(state).data, size * sizeof(float));
    outcome.loss += state.sums.loss;
    outcome.gradient_norm += state.sums.gradient_norm_shared + state.sums.gradient_norm_private;
    EXPECT_TRUE(state.sums.finite);
    evaluated.push_back({state.slot, train});
  }
  const auto evaluations = evaluate(pairs, policy, buffers.parameters(), evaluated, options.loss, micro_rows, nullptr);
  for (const Evaluation& evaluation : *evaluations) {
    outcome.margins.insert(outcome.margins.end(), evaluation.margin.begin(), evaluation.margin.end());
    outcome.kl += evaluation.kl_to_reference;
  }
  outcome.embeddings = embed_pairs(pairs, policy, buffers.parameters(), 0, train, micro_rows);
  return outcome;
}

/// Log-probabilities of chosen and rejected responses by a model as it starts.
std::vector<double> log_probs(const char* name, DType dtype, const AdapterOptions& adapter, Backend& backend) {
  GoldenModel model(name, dtype);
  const ModelConfig& config = model.folder.config();
  std::shared_ptr<void> owner;
  const Weights weights = place_weights(backend, config, dtype, static_cast<std::byte*>(model.memory.get()), owner);
  const PairSet pairs = random_pairs(6, 3, config.vocab_size);
  const ParameterLayout layout(config, adapter, {});
  Policy policy(backend, config, weights, layout);
  ClientBuffers buffers(backend, layout, 1);
  std::vector<float> start(layout.size());
  layout.initialize(4, 0, weights.head, start);
  if (!start.empty())
    backend.copy_to_device(buffers.values(ClientState{}).data, start.data(), start.size() * sizeof(float));
  std::vector<PairToPack> all;
  for (std::uint32_t i = 0; i < 6; ++i) all.push_back({{0, i}, false});
  const MemberPairs alone{0, all};
  PackedBatch batch;
  pack(pairs, std::span(&alone, 1), policy.packing(), batch);
  std::vector<PairScores> scores(all.size());
  policy.score(batch, buffers.parameters(), scores);
  std::vector<double> result;
  for (const PairScores& s : scores) result.insert(result.end(), {s.log_prob_chosen, s.log_prob_rejected});
  return result;
}

/// How far `found` is, and where most.
template <class A, class B>
void expect_near(const char* what, const A& found, const B& expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  std::size_t worst = 0, not_finite = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    not_finite += std::isfinite(found[i]) ? 0 : 1;
    const auto error = [&](std::size_t at) { return std::abs(found[at] - expected[at]); };
    if (std::isfinite(found[worst]) && !(error(i) <= error(worst))) worst = i;
  }
  EXPECT_LT(relative_error(found, expected), tolerance)
      << what << ": " << not_finite << " of " << found.size() << " not finite; the worst is number " << worst
      << ": expected " << expected[worst] << ", found " << found[worst];
}

void expect_equal(const Outcome& found, const Outcome& expected, double tolerance) {
  expect_near("gradients", found.gradients, expected.gradients, tolerance);
  expect_near("values", found.values, expected.values, tolerance);
  expect_near("embeddings", found.embeddings, expected.embeddings, tolerance);
  expect_near("margins", found.margins, expected.margins, 10 * tolerance);  // differences of log-probabilities
  EXPECT_NEAR(found.loss / expected.loss, 1, tolerance);
  EXPECT_NEAR(found.gradient_norm / expected.gradient_norm, 1, tolerance);
  EXPECT_NEAR(found.kl, expected.kl, 10 * tolerance);
}

/// Every kind of module.
std::vector<AdapterOptions> adapters() {
  AdapterOptions gated = full_adapter(), dropout = full_adapter();
  gated.bottleneck_kind = BottleneckKind::gated;
  gated.head = HeadKind::lowrank;
  gated.head_rank = 3;
  gated.reward_pool = RewardPool::mean;
  dropout.lora_dropout = 0.25;
  dropout.head = HeadKind::frozen;
  return {full_adapter(), gated, dropout};
}

/// Every kind of module on one family, and the families whose passes have operations of their own.
std::vector<Case> kinds_of_passes() {
  std::vector<Case> cases;
  for (const AdapterOptions& adapter : adapters()) cases.push_back({"tiny_llama", adapter});
  for (const char* model : {"tiny_qwen3", "tiny_gpt_neox"}) cases.push_back({model, full_adapter()});
  return cases;
}

class CudaParity : public testing::Test {
 protected:
  void SetUp() override {
    device_ = make_parity_backend();
    if (!device_) GTEST_SKIP() << "no CUDA device";
    cpu_ = make_cpu_backend({});
  }
  std::unique_ptr<Backend> device_, cpu_;
};

TEST_F(CudaParity, TrainingStepsInFp32) {
  const std::string every_module[] = {"tiny_llama", "tiny_llama_tied", "tiny_gpt2"};
  for (const std::string& model : golden_models) {
    std::vector<AdapterOptions> with{full_adapter()};
    if (std::ranges::find(every_module, model) != std::end(every_module)) with = adapters();
    for (const AdapterOptions& adapter : with) {
      const Case one{model, adapter};
      SCOPED_TRACE(name_of(one));
      expect_equal(run(one, *device_, false), run(one, *cpu_, false), tolerance::kTrainingStep);
    }
  }
}

TEST_F(CudaParity, TrainingStepsOnBf16Weights) {
  for (const std::string& model : golden_models) {
    // Heads that are not private as well: their gradients of logits are bf16 on a device.
    std::vector<AdapterOptions> with{full_adapter()};
    if (model == "tiny_llama" || model == "tiny_gpt2" || model == "tiny_gpt_neox") with = adapters();
    if (model == "tiny_llama") {
      AdapterOptions upper = full_adapter(), some = full_adapter();
      upper.head = some.head = HeadKind::frozen;
      upper.lora_first_layer = 1;
      some.lora_targets = "q_proj,up_proj,down_proj";  // blocks that LoRA covers in part
      with.insert(with.end(), {upper, some});
    }
    for (const AdapterOptions& adapter : with) {
      const Case one{model, adapter, DType::bf16};
      SCOPED_TRACE(name_of(one) + ", LoRA of " + adapter.lora_targets);
      expect_equal(run(one, *device_, false), run(one, *cpu_, false), tolerance::kTrainingStepBf16);
    }
  }
}

// Their margins are then 0, to the bit.
TEST_F(CudaParity, APolicyWhoseLoraIsZeroIsTheReference) {
  for (const char* name : {"tiny_llama", "tiny_qwen2", "tiny_gpt2", "tiny_gpt_neox"})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(std::string(name) + ", " + dtype_name(dtype));
      AdapterOptions nothing, untrained;
      nothing.lora_rank = 0;
      const std::vector<double> reference = log_probs(name, dtype, nothing, *device_);
      EXPECT_EQ(log_probs(name, dtype, untrained, *device_), reference);
    }
}

TEST_F(CudaParity, ACohortIsItsClientsOneByOne) {
  for (const Case& one : kinds_of_passes()) {
    SCOPED_TRACE(name_of(one));
    expect_equal(run(one, *device_, true), run(one, *device_, false), tolerance::kTrainingStep);
  }
}

TEST_F(CudaParity, MicroBatchesAreOneBatch) {
  const Case one{"tiny_gpt2", full_adapter()};
  expect_equal(run(one, *device_, true, 20), run(one, *device_, true), tolerance::kTrainingStep);
}

// Five steps: as it is, captured, and launched again with other batches of the same size class.
TEST_F(CudaParity, GraphsGiveTheSameSteps) {
  ASSERT_TRUE(device_->supports_recording());
  for (const DType dtype : {DType::f32, DType::bf16})
    for (Case one : kinds_of_passes()) {
      one.dtype = dtype;
      one.adapter.lora_dropout = 0;
      SCOPED_TRACE(name_of(one));
      for (const bool as_a_cohort : {false, true}) {
        // An emulated device takes its time: other families once.
        if (one.model != "tiny_llama" && (dtype == DType::f32 || !as_a_cohort)) continue;
        SCOPED_TRACE(as_a_cohort ? "a cohort" : "one by one");
        const std::optional<std::size_t> at_first = graph_launches();
        const Outcome without = run(one, *device_, as_a_cohort, 1024, Graphs::never, 5);
        EXPECT_EQ(graph_launches(), at_first);
        const std::optional<std::size_t> before = graph_launches();
        const Outcome with = run(one, *device_, as_a_cohort, 1024, Graphs::always, 5);
        if (before) {
          EXPECT_GT(*graph_launches(), *before);
        }
        expect_equal(with, without, dtype == DType::f32 ? tolerance::kTrainingStep : tolerance::kTrainingStepBf16);
      }
    }
}

TEST_F(CudaParity, TheSameStepsGiveTheSameBits) {
  const Case one{"tiny_llama", full_adapter()};
  const Outcome first = run(one, *device_, true), again = run(one, *device_, true);
  EXPECT_TRUE(same_bits(first.gradients, again.gradients));
  EXPECT_TRUE(same_bits(first.values, again.values));
  EXPECT_EQ(first.margins, again.margins);
}

}  // namespace
}  // namespace fedpdpo::test
