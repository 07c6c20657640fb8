// One thread an element: fill, copies and conversions, axpy, scaled rows, bias, rotary embedding, AdamW, dropout.
#include <cmath>

#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"

namespace fedpdpo::cuda {

void fill(cudaStream_t stream, View y, float value) {
  over_elements(stream, "fill", y.rows, y.cols,
                [=] __device__(std::int64_t t, std::int64_t c) { row_of(y, t)[c] = value; });
}

void copy(cudaStream_t stream, ConstView x, View y) {
  if (x.dtype == DType::bf16 && y.dtype == DType::bf16) {
    over_elements(stream, "copy", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
      static_cast<std::uint16_t*>(y.data)[t * y.stride + c] =
          static_cast<const std::uint16_t*>(x.data)[t * x.stride + c];
    });
  } else if (y.dtype == DType::bf16) {
    over_elements(stream, "copy", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
      static_cast<std::uint16_t*>(y.data)[t * y.stride + c] = rounded_to_bf16(row_of(x, t)[c]);
    });
  } else if (x.dtype == DType::bf16) {
    over_elements(stream, "copy", x.rows, x.cols,
                  [=] __device__(std::int64_t t, std::int64_t c) { row_of(y, t)[c] = widened(x, t, c); });
  } else {  // f32, or i32 as bits
    over_elements(stream, "copy", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
      static_cast<std::uint32_t*>(y.data)[t * y.stride + c] =
          static_cast<const std::uint32_t*>(x.data)[t * x.stride + c];
    });
  }
}

void round_to_bf16(cudaStream_t stream, ConstView x, std::uint16_t* y, std::int64_t y_stride) {
  copy(stream, x, {y, x.rows, x.cols, y_stride, DType::bf16});
}

void axpy(cudaStream_t stream, float alpha, ConstView x, View y, Write mode) {
  over_elements(stream, "axpy", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
    const float term = row_of(x, t)[c];
    float* out = row_of(y, t) + c;
    *out = mode == Write::accumulate ? fmaf(alpha, term, *out) : alpha * term;
  });
}

void scale_rows(cudaStream_t stream, ConstView weights, View x) {
  over_elements(stream, "scale_rows", x.rows, x.cols,
                [=] __device__(std::int64_t t, std::int64_t c) { row_of(x, t)[c] *= row_of(weights, 0)[t]; });
}

void add_bias(cudaStream_t stream, ConstView bias, View y) {
  over_elements(stream, "linear: bias", y.rows, y.cols,
                [=] __device__(std::int64_t t, std::int64_t c) { row_of(y, t)[c] += row_of(bias, 0)[c]; });
}

void rotate(cudaStream_t stream, ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim,
            Rotation direction, View x) {
  const auto half = static_cast<std::int32_t>(cos.cols);
  const float sign = direction == Rotation::forward ? 1.0f : -1.0f;
  over_elements(stream, "rotate", x.rows, x.cols / head_dim * half, [=] __device__(std::int64_t t, std::int64_t i) {
    const auto pair = static_cast<std::int32_t>(i);
    const std::int32_t head = pair / half, j = pair % half;
    const std::int64_t position = static_cast<const std::int32_t*>(positions.data)[t];
    const float c = row_of(cos, position)[j], s = sign * row_of(sin, position)[j];
    float* at = row_of(x, t) + static_cast<std::int64_t>(head) * head_dim + j;
    const float x1 = at[0], x2 = at[half];
    at[0] = fmaf(-x2, s, x1 * c);
    at[half] = fmaf(x1, s, x2 * c);
  });
}

void adamw(cudaStream_t stream, const AdamWFactors& factors, View values, ConstView gradients, View first_moment,
           View second_moment) {
  const AdamWFactors f = factors;
  over_elements(stream, "adamw", values.rows, values.cols, [=] __device__(std::int64_t t, std::int64_t c) {
    float* p = row_of(values, t) + c;
    float* m = row_of(first_moment, t) + c;
    float* v = row_of(second_moment, t) + c;
    const float gradient = f.gradient_scale * row_of(gradients, t)[c];
    const float first = fmaf(f.beta1, *m, f.one_minus_beta1 * gradient);
    const float second = fmaf(f.beta2, *v, f.one_minus_beta2 * (gradient * gradient));
    const float root = fmaf(sqrtf(second), f.inverse_root_correction2, f.epsilon);
    const float update = f.step_size * (first / root);
    *m = first;
    *v = second;
    *p = fmaf(f.decay, *p, -update);
  });
}

// Four columns a thread: one Philox block. Kept where its word is at least p 2^32, as on the CPU.
void dropout(cudaStream_t stream, float p, const StreamId& id, std::int64_t first_row, ConstView x, View y,
             Write mode) {
  const auto threshold = static_cast<std::uint32_t>(std::ceil(static_cast<double>(p) * 4294967296.0));
  const float scale = 1.0f / (1.0f - p);
  const PhiloxKey key = philox_key(id.seed, id.purpose);
  const std::uint32_t step = id.step, owner = id.client ^ (id.round << 16);
  const auto first = static_cast<std::uint32_t>(first_row);
  over_elements(stream, "dropout", x.rows, (x.cols + 3) / 4, [=] __device__(std::int64_t t, std::int64_t group) {
    const PhiloxCounter words =
        philox4x32({static_cast<std::uint32_t>(group), first + static_cast<std::uint32_t>(t), step, owner}, key);
    for (int i = 0; i < 4; ++i) {
      const std::int64_t c = 4 * group + i;
      if (c >= x.cols) break;
      const float kept = words[i] < threshold ? 0.0f : scale * row_of(x, t)[c];
      put(row_of(y, t) + c, kept, mode);
    }
  });
}

}  // namespace fedpdpo::cuda
