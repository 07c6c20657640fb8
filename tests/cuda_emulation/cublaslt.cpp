// Emulated cuBLASLt: D = alpha op(A) op(B) + beta C, column-major, fp32 results, sums in double; C and D may be bf16.
// Of types it takes what the documentation's table for cublasLtMatmul() has, and an algorithm only for what it was
// chosen for, but for the numbers of columns.
#include "cublasLt.h"

#include <cstdio>
#include <cstdlib>

#include "cuda/cublas_lt.hpp"
#include "emulation.hpp"

namespace {

emulation::GemmSupport support = emulation::GemmSupport::any_rows;
std::size_t heuristics = 0;

float element(const void* matrix, const EmulatedLayout& layout, std::uint64_t row, std::uint64_t col) {
  const std::size_t at = static_cast<std::size_t>(col) * static_cast<std::size_t>(layout.lead) + row;
  if (layout.type == CUDA_R_32F) return static_cast<const float*>(matrix)[at];
  return __uint_as_float(static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(matrix)[at]) << 16);
}

bool aligned(const void* data, std::uint32_t alignment) {
  return reinterpret_cast<std::uintptr_t>(data) % alignment == 0;
}

struct Sizes {
  std::uint64_t m, n, k;
};

/// The rows of the documentation's table that are used here; the factors of TF32 are fp32.
bool has_types(cublasComputeType_t compute, cudaDataType_t a, cudaDataType_t b, cudaDataType_t c) {
  if (a != b) return false;
  if (a == CUDA_R_32F) return c == CUDA_R_32F;
  return compute == CUBLAS_COMPUTE_32F && (c == CUDA_R_32F || c == CUDA_R_16BF);
}

/// False where the matrices do not fit together.
bool sizes_of(const EmulatedMatmul& product, const EmulatedLayout& a, const EmulatedLayout& b, const EmulatedLayout& c,
              Sizes& sizes) {
  const bool a_plain = product.a == CUBLAS_OP_N, b_plain = product.b == CUBLAS_OP_N;
  sizes = {a_plain ? a.rows : a.cols, b_plain ? b.cols : b.rows, a_plain ? a.cols : a.rows};
  return (b_plain ? b.rows : b.cols) == sizes.k && c.rows == sizes.m && c.cols == sizes.n &&
         has_types(product.compute, a.type, b.type, c.type);
}

void put(void* matrix, const EmulatedLayout& layout, std::uint64_t row, std::uint64_t col, float value) {
  const std::size_t at = static_cast<std::size_t>(col) * static_cast<std::size_t>(layout.lead) + row;
  if (layout.type == CUDA_R_32F) {
    static_cast<float*>(matrix)[at] = value;
  } else {  // to the nearest, ties to even
    const std::uint32_t bits = __float_as_uint(value);
    static_cast<std::uint16_t*>(matrix)[at] = static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

/// The 13 bits that TF32 leaves out are rounded away, ties to even.
float as_factor(float value, cublasComputeType_t compute) {
  if (compute != CUBLAS_COMPUTE_32F_FAST_TF32) return value;
  const std::uint32_t bits = __float_as_uint(value);
  return __uint_as_float((bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu);
}

}  // namespace

namespace emulation {

void set_gemm_support(GemmSupport wanted) { support = wanted; }
std::size_t heuristics_asked() { return heuristics; }

}  // namespace emulation

const char* cublasLtGetStatusName(cublasStatus_t) { return "CUBLAS_STATUS_EMULATED"; }
cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new int(0);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete static_cast<int*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t compute, cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
  *made = new EmulatedMatmul;
  (*made)->compute = compute;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  delete product;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  if (bytes != sizeof(cublasOperation_t)) return CUBLAS_STATUS_INVALID_VALUE;
  if (attribute != CUBLASLT_MATMUL_DESC_TRANSA && attribute != CUBLASLT_MATMUL_DESC_TRANSB)
    return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(attribute == CUBLASLT_MATMUL_DESC_TRANSA ? &product->a : &product->b, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType_t type, std::uint64_t rows,
                                          std::uint64_t cols, std::int64_t lead) {
  if (lead < static_cast<std::int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  *made = new EmulatedLayout{type, rows, cols, lead};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                std::size_t bytes) {
  if (bytes != sizeof layout->cols || attribute != CUBLASLT_MATRIX_LAYOUT_COLS) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&layout->cols, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
  *made = new EmulatedPreference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    if (bytes != sizeof preference->workspace) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&preference->workspace, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  if (bytes != sizeof(std::uint32_t)) return CUBLAS_STATUS_INVALID_VALUE;
  if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
    std::memcpy(&preference->reductions, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  std::memcpy(&preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t, cublasLtMatmulPreference_t preference, int,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  ++heuristics;
  *found = 0;
  if (support == emulation::GemmSupport::none) return CUBLAS_STATUS_NOT_SUPPORTED;
  Sizes sizes{};
  if (!sizes_of(*product, *a, *b, *c, sizes) || sizes.m == 0 || sizes.n == 0 || sizes.k == 0)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (preference->reductions != CUBLASLT_REDUCTION_SCHEME_NONE) {
    std::fputs("emulated cuBLASLt: an algorithm that may split sums\n", stderr);
    std::abort();
  }
  results->algo = {preference->workspace,       sizes.m,    sizes.n,    sizes.k,
                   {a->lead, b->lead, c->lead}, product->a, product->b, {}};
  std::memcpy(results->algo.alignment, preference->alignment, sizeof preference->alignment);
  results->state = CUBLAS_STATUS_SUCCESS;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              std::size_t workspace_bytes, cudaStream_t stream) {
  Sizes sizes{};
  const bool of_this_product = algorithm->a == product->a && algorithm->b == product->b &&
                               algorithm->leads[0] == a_layout->lead && algorithm->leads[1] == b_layout->lead &&
                               algorithm->leads[2] == c_layout->lead;
  constexpr std::uint32_t workspace_alignment = 256;
  if (!sizes_of(*product, *a_layout, *b_layout, *c_layout, sizes) || !of_this_product || c != d ||
      c_layout != d_layout || !aligned(workspace, workspace_alignment) || workspace == nullptr ||
      workspace_bytes < algorithm->workspace || !aligned(a, algorithm->alignment[0]) ||
      !aligned(b, algorithm->alignment[1]) || !aligned(c, algorithm->alignment[2]) ||
      !aligned(d, algorithm->alignment[3])) {
    std::fputs("emulated cuBLASLt: a product whose parts do not fit together\n", stderr);
    std::abort();
  }
  const bool as_chosen = sizes.m == algorithm->m && sizes.n == algorithm->n && sizes.k == algorithm->k;
  if (support == emulation::GemmSupport::chosen_rows && !as_chosen) return CUBLAS_STATUS_NOT_SUPPORTED;
  const float alpha_value = *static_cast<const float*>(alpha), beta_value = *static_cast<const float*>(beta);
  emulation::enqueue(stream, [=, product = *product, a_layout = *a_layout, b_layout = *b_layout, c_layout = *c_layout] {
    const auto factor = [&](float value) { return static_cast<double>(as_factor(value, product.compute)); };
    for (std::uint64_t j = 0; j < sizes.n; ++j)
      for (std::uint64_t i = 0; i < sizes.m; ++i) {
        double sum = 0;
        for (std::uint64_t k = 0; k < sizes.k; ++k)
          sum += factor(product.a == CUBLAS_OP_N ? element(a, a_layout, i, k) : element(a, a_layout, k, i)) *
                 factor(product.b == CUBLAS_OP_N ? element(b, b_layout, k, j) : element(b, b_layout, j, k));
        const float value = alpha_value * static_cast<float>(sum);
        put(d, c_layout, i, j, beta_value == 0 ? value : value + beta_value * element(d, c_layout, i, j));
      }
  });
  return CUBLAS_STATUS_SUCCESS;
}

const fedpdpo::cuda::CublasLt& fedpdpo::cuda::cublas_lt() {
  static const CublasLt functions = {.get_status_name = cublasLtGetStatusName,
                                     .create = cublasLtCreate,
                                     .destroy = cublasLtDestroy,
                                     .product_create = cublasLtMatmulDescCreate,
                                     .product_destroy = cublasLtMatmulDescDestroy,
                                     .product_set_attribute = cublasLtMatmulDescSetAttribute,
                                     .layout_create = cublasLtMatrixLayoutCreate,
                                     .layout_destroy = cublasLtMatrixLayoutDestroy,
                                     .layout_set_attribute = cublasLtMatrixLayoutSetAttribute,
                                     .preference_create = cublasLtMatmulPreferenceCreate,
                                     .preference_destroy = cublasLtMatmulPreferenceDestroy,
                                     .preference_set_attribute = cublasLtMatmulPreferenceSetAttribute,
                                     .get_heuristic = cublasLtMatmulAlgoGetHeuristic,
                                     .matmul = cublasLtMatmul};
  return functions;
}
