// Backend: the operations a packed decoder is made of, on one device. The public functions check shapes, strides and
// dtypes once and call the private virtuals, which do the work: they write into given outputs, never allocate in the
// steady state and never synchronise (but for the functions that return numbers to the host).
//
// Gradients: outputs named d_* are written as `Write` says. Per-client parameters of a cohort are `ClientMatrix`: the
// same matrix for every member, at base + slot * stride.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "fedpdpo/backend/batch.hpp"
#include "fedpdpo/backend/tensor.hpp"
#include "fedpdpo/core/fixed_point.hpp"
#include "fedpdpo/core/random.hpp"

namespace fedpdpo {

/// What an operation does with its output.
enum class Write : std::uint8_t { overwrite, accumulate };

enum class Activation : std::uint8_t { silu, gelu_tanh, gelu_erf };

struct AttentionShape {
  std::int32_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float scale = 1;  ///< usually 1 / sqrt(head_dim)
};

/// Columns of queries and keys, which lie before the values.
inline std::int64_t query_key_width(const AttentionShape& s) {
  return std::int64_t{s.num_heads + s.num_kv_heads} * s.head_dim;
}

/// A rotary embedding: positions of rows, (1, T) i32, and tables by position, (P, rotary_dim / 2) each. Without
/// columns: none.
struct RotaryRows {
  ConstView positions, cos, sin;
};

/// A (rows, cols) fp32 matrix of every slot: element (i, j) of slot s is data[s * slot_stride + i * cols + j].
struct ConstClientMatrix {
  const float* data = nullptr;
  std::int64_t rows = 0, cols = 0, slot_stride = 0;
};
struct ClientMatrix {
  float* data = nullptr;
  std::int64_t rows = 0, cols = 0, slot_stride = 0;
  operator ConstClientMatrix() const { return {data, rows, cols, slot_stride}; }
};

/// A low-rank map whose output is columns [begin, end) of y, from columns [u_begin, u_begin + r) of u by B (end -
/// begin, r); d_b, of the same shape, has memory where the gradient is wanted.
struct LowRankSite {
  std::int32_t begin = 0, end = 0, u_begin = 0;
  ConstClientMatrix b;
  ClientMatrix d_b;
};

enum class Multiply : std::uint8_t {
  by_transpose,  ///< y = x P^T, P (cols of y, cols of x)
  by_matrix,     ///< y = x P,   P (cols of x, cols of y)
};

enum class Rotation : std::uint8_t { forward, inverse };

struct AdamW {
  float learning_rate = 1e-3f;
  float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;
  float weight_decay = 0;
  std::int64_t step = 1;     ///< counts from 1; bias corrections 1 - beta^step
  float gradient_scale = 1;  ///< multiplies the gradient first (clipping)
};

/// One sweep of AdamW over n elements: (1, n) each.
struct AdamWSpan {
  AdamW options;
  View values;
  ConstView gradients;
  View first_moment, second_moment;
};

/// Work that is given again and again: operations with the very views and scalars of the first time. Made by
/// Backend::make_recording() and gone before its backend is.
class Recording {
 public:
  virtual ~Recording() = default;
};

/// Bytes given out by Backend::allocate, without what a backend keeps for itself.
struct AllocatedBytes {
  std::size_t now = 0;   ///< alive
  std::size_t peak = 0;  ///< the most that were alive at once since the last reset_peak()
};

/// Bytes of a device.
struct DeviceMemory {
  std::size_t free = 0;  ///< that this process may still allocate
  std::size_t total = 0;
};

/// A copy that may still be under way; an empty one is done.
struct CopyTicket {
  std::shared_ptr<void> event;
};

class Backend {
 public:
  virtual ~Backend() = default;

  /// "cpu" or "cuda", and the device in words.
  virtual std::string name() const = 0;
  virtual std::string description() const = 0;
  /// True where the memory of views is the host's, so that it may be used in place.
  virtual bool computes_on_host_memory() const = 0;
  /// True where operations take activations in bf16 as well as in f32; sums are fp32 either way.
  virtual bool supports_bf16_activations() const { return false; }
  /// Where the device sits in its node, the same in every process that uses it (CUDA: the PCI bus id); empty where it
  /// is the host.
  virtual std::string device_identity() const = 0;
  /// The cudaStream_t that all work is given to; null where there is none.
  virtual void* native_stream() const = 0;
  /// Nothing where the memory is the host's, which other processes share: no number would hold.
  virtual std::optional<DeviceMemory> memory() const { return std::nullopt; }

  // --- memory
  std::shared_ptr<void> allocate(std::size_t bytes);
  AllocatedBytes allocated() const { return *allocated_; }
  void reset_peak() { allocated_->peak = allocated_->now; }
  virtual void copy_to_device(void* device, const void* host, std::size_t bytes) = 0;
  virtual void copy_to_host(void* host, const void* device, std::size_t bytes) = 0;
  void fill(View y, float value);
  void copy(ConstView x, View y);  ///< same shape; converts f32 <-> bf16

  // --- copies beside the work, between the device and page-locked host memory. A copy begins when the work and the
  // copies that were given before it are done, whatever is given after it; nothing waits for it unasked. Default: at
  // once, in pageable memory.
  /// Page-locked host memory of zeros, 64-byte aligned.
  virtual std::shared_ptr<void> allocate_pinned(std::size_t bytes);
  virtual CopyTicket copy_to_device_async(void* device, const void* pinned, std::size_t bytes);
  virtual CopyTicket copy_to_host_async(void* pinned, const void* device, std::size_t bytes);
  /// The work given from now on waits for the copy; the host does not.
  virtual void wait_for(const CopyTicket&) {}
  /// The host waits for the copy.
  virtual void finish(const CopyTicket&) {}

  // Activations (marked so) may be bf16 where the backend supports it, each argument by itself unless said otherwise.

  // --- rows of the residual stream, which is f32
  /// y[t] = table[tokens[t]] (+ position_table[positions[t]] where it has rows). tokens, positions (1, T) i32; table
  /// (V, d) f32 or bf16; y (T, d).
  void embed(ConstView tokens, ConstView positions, ConstView table, ConstView position_table, View y);
  /// y = x / sqrt(mean(x^2) + eps) * w; x, y (T, d), w (1, d). y, in the backward d_y, is an activation.
  void rms_norm(ConstView x, ConstView w, float eps, View y);
  void rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode);
  /// sum = x + delta, y = rms_norm(sum); sum may be x or delta. delta and y are activations of one dtype.
  void residual_rms_norm(ConstView x, ConstView delta, ConstView w, float eps, View sum, View y);
  /// Its backward: d_sum += what comes through y, d_delta = d_sum, and y = rms_norm(sum) once more, for products with
  /// it; d_y, y and d_delta are activations of one dtype, none of them another one of the three.
  void residual_rms_norm_backward(ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum, View d_delta,
                                  View y);
  /// y = (x - mean) / sqrt(var + eps) * w + b. y, in the backward d_y, is an activation.
  void layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y);
  void layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode);
  /// rms_norm of each head of x (T, heads * head_dim) by its own part of w (1, heads * head_dim); x, y activations of
  /// one dtype. y may be x.
  void head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y);
  /// d_x is overwritten and may be d_y; x, d_y and d_x are activations of one dtype.
  void head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y, View d_x);
  /// y = a + b; y may be a or b. b is an activation.
  void add(ConstView a, ConstView b, View y);
  /// y (+)= alpha x.
  void axpy(float alpha, ConstView x, View y, Write mode);
  /// x[t, :] *= weights[t], in place; weights (1, T), x (T, n).
  void scale_rows(ConstView weights, View x);
  /// y[i] = x[rows[i]]; rows (1, n) i32, x (T, d), y (n, d).
  void gather_rows(ConstView x, ConstView rows, View y);
  /// y[rows[i]] += x[i], in the order of i (rows may repeat: their sum is deterministic).
  void scatter_add_rows(ConstView x, ConstView rows, View y);

  // --- frozen linear maps: w (N, K) row-major f32 or bf16; accumulation in fp32; x, y and their gradients are
  // activations, bf16 with bf16 weights alone
  /// y (+)= x w^T (+ bias where it has columns); x (T, K), y (T, N).
  void linear(ConstView x, ConstView w, ConstView bias, View y, Write mode);
  /// d_x (+)= d_y w.
  void linear_backward(ConstView d_y, ConstView w, View d_x, Write mode);

  // --- per-client maps, grouped by cohort member
  /// For each member: y[rows] (+)= alpha x[rows] P^T or x[rows] P; x and y are activations.
  void grouped_matmul(std::span<const MemberRows> members, Multiply how, float alpha, ConstView x, ConstClientMatrix p,
                      View y, Write mode);
  /// For each member: d_P (+)= alpha d_y[rows]^T x[rows]; d_y (T, N), x (T, K), both activations, d_P (N, K). A member
  /// without rows contributes zero (overwrite clears it).
  void grouped_outer(std::span<const MemberRows> members, float alpha, ConstView d_y, ConstView x, ClientMatrix d_p,
                     Write mode);
  /// For each member and site: y[rows, begin:end] (+)= alpha u[rows, u_begin:u_begin + r] B^T; u (T, U) f32, y (T, N)
  /// an activation. Sites come in the order of their columns in u and in y and do not overlap.
  void low_rank_up(std::span<const MemberRows> members, float alpha, ConstView u, std::span<const LowRankSite> sites,
                   View y, Write mode);
  /// Its backward: d_u[rows, u_begin:u_begin + r] = alpha d_y[rows, begin:end] B, and d_B (+)= alpha d_y^T u; d_y is an
  /// activation.
  void low_rank_up_backward(std::span<const MemberRows> members, float alpha, ConstView u,
                            std::span<const LowRankSite> sites, ConstView d_y, View d_u, Write d_b_mode);
  /// y[rows] += b of the member; b (1, N).
  void grouped_add_bias(std::span<const MemberRows> members, ConstClientMatrix b, View y);
  /// d_b (+)= column sums of d_y[rows].
  void grouped_column_sum(std::span<const MemberRows> members, ConstView d_y, ClientMatrix d_b, Write mode);
  /// z = (1 - g) * h + g * a, elementwise with the member's g (1, d).
  void grouped_gate(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g, View z);
  /// d_h (+)= (1 - g) d_z; d_a = g d_z; d_g (+)= column sums of (a - h) d_z.
  void grouped_gate_backward(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                             ConstView d_z, View d_h, Write d_h_mode, View d_a, ClientMatrix d_g, Write d_g_mode);

  // --- attention
  /// Rotates, in place, the first rotary_dim columns of each head of x (T, num_heads * head_dim), halves paired as in
  /// GPT-NeoX and Llama: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin). cos, sin (P, rotary_dim / 2) by position;
  /// inverse rotates back (the backward of forward). x is an activation.
  void rotate(ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction, View x);
  /// qkv (T, (H + 2 H_kv) head_dim): queries, keys, values. out (T, H head_dim); lse (T, H) log-sum-exp of the scaled
  /// scores. Query head h uses key head h / (H / H_kv). All but lse, which is f32, may also be bf16 where the backend
  /// supports bf16 activations; attention weights and their gradients are then rounded to bf16 in the products that
  /// they enter. On CUDA a group's rows have the same bits in any batch.
  void attention(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, View out, View lse);
  /// Uploads a plan that the next calls are given, where it must be on the device.
  virtual void prepare(const AttentionPlan& plan);
  /// d_qkv (overwritten) has qkv's shape and dtype, as out and d_out have its dtype.
  /// With tables it is the gradient of what rotate() made queries and keys of: these are rotated back, as rotate()
  /// would.
  void attention_backward(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, ConstView out,
                          ConstView lse, ConstView d_out, View d_qkv, const RotaryRows& rotary = {});

  // --- activations, all arguments of one dtype
  /// y = act(gate) * up with x = [gate | up] (T, 2n), y (T, n).
  void gated_activation(Activation kind, ConstView x, View y);
  /// d_x (T, 2n) overwritten; may be x itself. y, where it has rows, is computed once more; it may be d_y itself.
  void gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y = {});
  void activation(Activation kind, ConstView x, View y);
  /// d_x overwritten; may be x or d_y itself. y, where it has rows, is computed once more.
  void activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y = {});
  /// y (+)= x * keep / (1 - p), x and y activations, keep drawn by Philox at (row, column) of the stream: the same call
  /// on a gradient is its backward. Counter: {column / 4, first_row + row, id.step, id.client ^ (id.round << 16)} under
  /// philox_key(id.seed, id.purpose); word column % 4 keeps where u32 >= p 2^32.
  void dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode);

  // --- language-model head
  /// lse[i] = log sum_v exp(logits[i, v]); log_prob[i] = logits[i, targets[i]] - lse[i], from the same fp32 numbers.
  void log_softmax(ConstView logits, ConstView targets, View log_prob, View lse);
  /// d_logits[i, v] = coefficient[i] (1[v = target] - exp(logits[i, v] - lse[i])), the gradient of
  /// sum_i coefficient[i] log_prob[i]. d_logits, an activation, may be logits itself, or lie over it as
  /// half_rows(logits).
  void log_softmax_backward(ConstView targets, ConstView lse, ConstView coefficient, ConstView logits, View d_logits);

  // --- flat buffers
  /// One sweep over n elements of all four; torch.optim.AdamW's update.
  void adamw(const AdamW& options, View values, ConstView gradients, View first_moment, View second_moment);
  /// adamw() of every span, at once; spans do not overlap.
  void adamw_spans(std::span<const AdamWSpan> spans);
  /// Sum of products in double, x and y of one shape, summed in a fixed order (to the host: waits for the device).
  double dot(ConstView x, ConstView y);
  double squared_norm(ConstView x) { return dot(x, x); }
  /// norms[i] = squared_norm(xs[i]), each (1, n), bit for bit; waits for the device once.
  void squared_norms(std::span<const ConstView> xs, std::span<double> norms);

  // --- exact sums over clients (core/fixed_point.hpp), bit for bit as there. Vectors (1, n) are cut into b blocks at
  // offsets (1, b + 1) i32, which begin with 0, rise and end with n; exponents (1, b) i32.
  /// peaks[j] = largest magnitude of block j, infinite or NaN if a value is not finite; peaks (1, b).
  void block_peaks(ConstView values, ConstView offsets, View peaks);
  /// sums[i] += the term of weight and values[i]; sums (1, n) i64.
  void add_terms(ConstView values, double weight, ConstView offsets, ConstView exponents, TermCoding coding, View sums);
  /// y[i] = sums[i] as the nearest float; y (1, n).
  void round_sums(ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y);

  /// Waits for all work and all copies given so far.
  virtual void synchronize() = 0;

  // --- recorded work
  /// True where a recording spares the host what it takes to give work again.
  virtual bool supports_recording() const { return false; }
  virtual std::unique_ptr<Recording> make_recording() { return std::make_unique<Recording>(); }
  /// Does what `work` does: a sequence of operations that is the same every time, but for the contents of the views.
  /// `work` may be called, or what an earlier call of it gave may be given again. It moves nothing between host and
  /// device, allocates nothing once it has run, and returns no numbers.
  virtual void run(Recording& recording, const std::function<void()>& work);

 protected:
  // Sites one by one, by the products above.
  virtual void do_low_rank_up(std::span<const MemberRows> members, float alpha, ConstView u,
                              std::span<const LowRankSite> sites, View y, Write mode);
  virtual void do_low_rank_up_backward(std::span<const MemberRows> members, float alpha, ConstView u,
                                       std::span<const LowRankSite> sites, ConstView d_y, View d_u, Write d_b_mode);

 private:
  virtual std::shared_ptr<void> do_allocate(std::size_t bytes) = 0;
  virtual void do_fill(View y, float value) = 0;
  virtual void do_copy(ConstView x, View y) = 0;
  virtual void do_embed(ConstView tokens, ConstView positions, ConstView table, ConstView position_table, View y) = 0;
  virtual void do_rms_norm(ConstView x, ConstView w, float eps, View y) = 0;
  virtual void do_rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) = 0;
  virtual void do_layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y) = 0;
  virtual void do_layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) = 0;
  virtual void do_head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) = 0;
  virtual void do_head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y,
                                     View d_x) = 0;
  virtual void do_residual_rms_norm(ConstView x, ConstView delta, ConstView w, float eps, View sum, View y);
  virtual void do_residual_rms_norm_backward(ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum,
                                             View d_delta, View y);
  virtual void do_add(ConstView a, ConstView b, View y);
  virtual void do_axpy(float alpha, ConstView x, View y, Write mode) = 0;
  virtual void do_scale_rows(ConstView weights, View x) = 0;
  virtual void do_gather_rows(ConstView x, ConstView rows, View y) = 0;
  virtual void do_scatter_add_rows(ConstView x, ConstView rows, View y) = 0;
  virtual void do_linear(ConstView x, ConstView w, ConstView bias, View y, Write mode) = 0;
  virtual void do_linear_backward(ConstView d_y, ConstView w, View d_x, Write mode) = 0;
  virtual void do_grouped_matmul(std::span<const MemberRows> members, Multiply how, float alpha, ConstView x,
                                 ConstClientMatrix p, View y, Write mode) = 0;
  virtual void do_grouped_outer(std::span<const MemberRows> members, float alpha, ConstView d_y, ConstView x,
                                ClientMatrix d_p, Write mode) = 0;
  virtual void do_grouped_add_bias(std::span<const MemberRows> members, ConstClientMatrix b, View y) = 0;
  virtual void do_grouped_column_sum(std::span<const MemberRows> members, ConstView d_y, ClientMatrix d_b,
                                     Write mode) = 0;
  virtual void do_grouped_gate(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                               View z) = 0;
  virtual void do_grouped_gate_backward(std::span<const MemberRows> members, ConstView h, ConstView a,
                                        ConstClientMatrix g, ConstView d_z, View d_h, Write d_h_mode, View d_a,
                                        ClientMatrix d_g, Write d_g_mode) = 0;
  virtual void do_rotate(ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction,
                         View x) = 0;
  virtual void do_attention(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, View out,
                            View lse) = 0;
  virtual void do_attention_backward(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv,
                                     ConstView out, ConstView lse, ConstView d_out, View d_qkv,
                                     const RotaryRows& rotary) = 0;
  virtual void do_gated_activation(Activation kind, ConstView x, View y) = 0;
  virtual void do_gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) = 0;
  virtual void do_activation(Activation kind, ConstView x, View y) = 0;
  virtual void do_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) = 0;
  virtual void do_dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode) = 0;
  virtual void do_log_softmax(ConstView logits, ConstView targets, View log_prob, View lse) = 0;
  virtual void do_log_softmax_backward(ConstView targets, ConstView lse, ConstView coefficient, ConstView logits,
                                       View d_logits) = 0;
  virtual void do_adamw(const AdamW& options, View values, ConstView gradients, View first_moment,
                        View second_moment) = 0;
  virtual void do_adamw_spans(std::span<const AdamWSpan> spans);
  virtual double do_dot(ConstView x, ConstView y) = 0;
  virtual void do_squared_norms(std::span<const ConstView> xs, std::span<double> norms);
  virtual void do_block_peaks(ConstView values, ConstView offsets, View peaks) = 0;
  virtual void do_add_terms(ConstView values, double weight, ConstView offsets, ConstView exponents, TermCoding coding,
                            View sums) = 0;
  virtual void do_round_sums(ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y) = 0;

  std::shared_ptr<AllocatedBytes> allocated_ = std::make_shared<AllocatedBytes>();  // memory may outlive the backend
};

struct BackendOptions {
  int num_threads = 1;
};

/// The CPU backend: own matrix products for fp32, oneDNN's for bf16 weights (converted activations, fp32 accumulation;
/// where the processor has no bf16 products, weights are widened instead), and row kernels vectorised by Highway with
/// run-time dispatch. Deterministic: the same call gives the same bits for any number of threads, and every row-wise
/// operation, matrix products among them, gives a row the same bits in any batch. Used by one thread at a time.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);
/// True where bf16 matrix products are faster than fp32 ones here.
bool cpu_has_bf16();

}  // namespace fedpdpo
