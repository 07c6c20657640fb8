// cuBLASLt's descriptors and algorithms by shape. Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T: the
// operands change places, a matrix that lies row-major is its own transpose column-major, and strides are leading
// dimensions.
#include <algorithm>
#include <compare>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <type_traits>

#include "cuda/cublas_lt.hpp"
#include "cuda/gemm.hpp"
#include "cuda/products.hpp"
#include "cuda/status.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

/// Rows of the batch for which algorithms are chosen: 4096, so that passes which fill the device go by large tiles (one
/// that does not fill it waits for its launches more than for its tiles), or what FEDPDPO_CUDA_ROWS says, to measure
/// by.
std::int64_t typical_rows() {
  const char* text = std::getenv("FEDPDPO_CUDA_ROWS");
  const std::int64_t rows = text == nullptr ? 0 : std::atoll(text);
  return rows > 0 ? rows : 4096;
}

/// What cuBLASLt may rely on: a power of two up to 16 bytes.
std::uint32_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data) | 16u;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

cudaDataType_t cuda_type(DType type) { return type == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

/// What cuBLASLt answers, before it launches anything, where an algorithm does not go with these matrices.
bool refused(cublasStatus_t status) {
  return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
}

std::string product_text(const GemmShape& shape) {
  return "a product of (" + std::to_string(shape.m) + ", " + std::to_string(shape.k) + ") and (" +
         std::to_string(shape.k) + ", " + std::to_string(shape.n) + ")";
}

}  // namespace

/// Everything that the choice of an algorithm depends on; the batch's dimension is typical_rows(), unless that
/// algorithm refuses the rows at hand. Not whether sums are added to what is there: so that adding to zeros gives the
/// bits of a product alone.
struct Gemm::Key {
  std::int64_t m, n, k, a_stride, b_stride, c_stride;
  std::uint32_t a_alignment, b_alignment, c_alignment;
  bool a_transposed, b_transposed;
  DType type, c_type;
  Rounding rounding;

  auto operator<=>(const Key&) const = default;
};

struct Gemm::Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;
  std::set<std::int64_t> refused_rows;  // numbers of the batch's rows

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    for (cublasLtMatrixLayout_t layout : {a, b, c})
      if (layout != nullptr) (void)cublas_lt().layout_destroy(layout);
    if (product != nullptr) (void)cublas_lt().product_destroy(product);
  }
};

struct Gemm::Plans {
  std::map<Key, Plan> by_key;
};

Gemm::Gemm(std::shared_ptr<Device> device)
    : device_(std::move(device)),
      workspace_(device_),
      plans_(std::make_unique<Plans>()),
      typical_rows_(typical_rows()) {
  check_cublas(cublas_lt().create(&handle_), "cublasLtCreate");
  workspace_.get(kWorkspaceBytes);
}

Gemm::~Gemm() {
  plans_.reset();
  if (handle_ != nullptr) (void)cublas_lt().destroy(handle_);
}

Gemm::Plan& Gemm::plan_for(const Key& key) {
  const auto [place, is_new] = plans_->by_key.try_emplace(key);
  if (!is_new) return place->second;
  try {
    make_plan(key, place->second);
  } catch (...) {
    plans_->by_key.erase(place);  // who goes on without this memory asks again
    throw;
  }
  return place->second;
}

void Gemm::make_plan(const Key& key, Plan& plan) {
  const cublasComputeType_t compute =
      key.rounding == Rounding::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  check_cublas(cublas_lt().product_create(&plan.product, compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const cublasOperation_t first = key.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = key.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  check_cublas(cublas_lt().product_set_attribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
               "cublasLtMatmulDescSetAttribute");
  check_cublas(cublas_lt().product_set_attribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
               "cublasLtMatmulDescSetAttribute");
  const auto layout = [](cublasLtMatrixLayout_t& made, DType type, std::int64_t stored_rows, std::int64_t stored_cols,
                         std::int64_t stride) {
    check_cublas(cublas_lt().layout_create(&made, cuda_type(type), static_cast<std::uint64_t>(stored_cols),
                                           static_cast<std::uint64_t>(stored_rows), stride),
                 "cublasLtMatrixLayoutCreate");
  };
  layout(plan.a, key.type, key.b_transposed ? key.n : key.k, key.b_transposed ? key.k : key.n, key.b_stride);
  layout(plan.b, key.type, key.a_transposed ? key.k : key.m, key.a_transposed ? key.m : key.k, key.a_stride);
  layout(plan.c, key.c_type, key.m, key.n, key.c_stride);

  cublasLtMatmulPreference_t preference = nullptr;
  check_cublas(cublas_lt().preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, decltype(&cublasLtMatmulPreferenceDestroy)>
      guard(preference, cublas_lt().preference_destroy);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check_cublas(cublas_lt().preference_set_attribute(preference, attribute, &value, sizeof value),
                 "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  const std::uint32_t whole_sums = CUBLASLT_REDUCTION_SCHEME_NONE;
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, whole_sums);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.b_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.a_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.c_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.c_alignment);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status =
      cublas_lt().get_heuristic(handle_, plan.product, plan.a, plan.b, plan.c, plan.c, preference, 1, &result, &found);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check_cublas(status, "cublasLtMatmulAlgoGetHeuristic");
  plan.found = status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS;
  plan.algorithm = result.algo;
}

void Gemm::multiply(const char* operation, const GemmShape& shape, const Operand& a, const Operand& b, void* c,
                    std::int64_t c_stride) {
  if (shape.m == 0 || shape.n == 0) return;
  // The batch's dimension must be the rows of stored matrices.
  check(shape.batch == BatchDimension::m ? !a.transposed : a.transposed && !b.transposed, "product: another batch");
  // A matrix of one row may have any stride; a leading dimension is at least the row's length.
  const std::int64_t a_stride = std::max(a.stride, a.transposed ? shape.m : shape.k);
  const std::int64_t b_stride = std::max(b.stride, b.transposed ? shape.k : shape.n);
  const std::int64_t stride = std::max(c_stride, shape.n);
  const bool rows_are_m = shape.batch == BatchDimension::m;
  const Key key{rows_are_m ? typical_rows_ : shape.m,
                shape.n,
                rows_are_m ? shape.k : typical_rows_,
                a_stride,
                b_stride,
                stride,
                alignment_of(a.data),
                alignment_of(b.data),
                alignment_of(c),
                a.transposed,
                b.transposed,
                shape.type,
                shape.c_type,
                shape.rounding};
  const cublasStatus_t status = multiply_by_cublas(key, shape, a.data, b.data, c);
  if (!refused(status)) return check_cublas(status, operation);
  if (!own_kernel_used_)
    log_warning("cuBLASLt takes " + product_text(shape) + " by no algorithm; the own kernel is slower");
  own_kernel_used_ = true;
  multiply_by_own_kernel(operation, shape, {a.data, a_stride, a.transposed}, {b.data, b_stride, b.transposed}, c,
                         stride);
}

/// By the algorithm for a typical number of rows or, where it refuses the rows at hand, by one that is chosen for them.
cublasStatus_t Gemm::multiply_by_cublas(Key key, const GemmShape& shape, const void* a, const void* b, void* c) {
  Plan& usual = plan_for(key);
  if (!usual.found) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool rows_are_m = shape.batch == BatchDimension::m;
  const std::int64_t rows = rows_are_m ? shape.m : shape.k;
  if (!usual.refused_rows.contains(rows)) {
    const cublasStatus_t status = launch(usual, shape, a, b, c);
    if (!refused(status)) return status;
    usual.refused_rows.insert(rows);
    if (!rows_matter_)
      log_warning("cuBLASLt takes " + product_text(shape) +
                  " only by an algorithm that is chosen for its number of rows: a row's bits may depend on its batch");
    rows_matter_ = true;
  }
  (rows_are_m ? key.m : key.k) = rows;
  Plan& own = plan_for(key);
  return own.found ? launch(own, shape, a, b, c) : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t Gemm::launch(Plan& plan, const GemmShape& shape, const void* a, const void* b, void* c) {
  // The batch's rows are the columns of what cuBLAS sees.
  const bool rows_are_m = shape.batch == BatchDimension::m;
  const auto rows = static_cast<std::uint64_t>(rows_are_m ? shape.m : shape.k);
  for (cublasLtMatrixLayout_t layout : {plan.b, rows_are_m ? plan.c : plan.a})
    check_cublas(cublas_lt().layout_set_attribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &rows, sizeof rows),
                 "cublasLtMatrixLayoutSetAttribute");
  const float beta = shape.mode == Write::accumulate ? 1.0f : 0.0f;
  return cublas_lt().matmul(handle_, plan.product, &shape.alpha, b, plan.a, a, plan.b, &beta, c, plan.c, c, plan.c,
                            &plan.algorithm, workspace_.get(kWorkspaceBytes), kWorkspaceBytes, device_->stream());
}

void Gemm::multiply_by_own_kernel(const char* operation, const GemmShape& shape, const Operand& a, const Operand& b,
                                  void* c, std::int64_t c_stride) {
  check(shape.m <= INT32_MAX && shape.k <= INT32_MAX, "product: too many rows");
  const ProductTask task{a.data, b.data, c, static_cast<std::int32_t>(shape.m), static_cast<std::int32_t>(shape.k)};
  const ProductShape own{.n = shape.n,
                         .a_row = a.transposed ? 1 : a.stride,
                         .a_col = a.transposed ? a.stride : 1,
                         .b_row = b.transposed ? 1 : b.stride,
                         .b_col = b.transposed ? b.stride : 1,
                         .c_row = c_stride,
                         .alpha = shape.alpha,
                         .mode = shape.mode,
                         .a_type = shape.type,
                         .b_type = shape.type,
                         .c_type = shape.c_type};
  products(device_->stream(), operation, {&task, 1}, own);
}

}  // namespace fedpdpo::cuda
