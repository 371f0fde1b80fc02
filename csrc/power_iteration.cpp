#include "power_iteration.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace vitgan {
namespace {

using Index = std::int64_t;

// A compiler may not reorder a floating-point sum, so a sum with one accumulator is not vectorised. Sixteen
// accumulators are sixteen independent sums: they fill the vector registers, and their order is fixed here.
constexpr Index kLanes = 16;

template <typename T>
T dot(const T* __restrict__ a, const T* __restrict__ b, Index n) {
  T lanes[kLanes] = {};
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (Index lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (Index lane = 0; i + lane < n; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  for (Index half = kLanes / 2; half > 0; half /= 2) {
    for (Index lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// In double, whatever T is: squares of ordinary float values leave float's range long before the values do.
template <typename T>
double dot_in_double(const T* a, const T* b, Index n) {
  double sum = 0.0;
  for (Index i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

template <typename T>
void normalise(const T* x, T* out, Index n, double eps) {
  const double norm = std::sqrt(dot_in_double(x, x, n));
  // written so that a norm that is not a number stays one; std::max(eps, norm) would hide it
  const double divisor = norm < eps ? eps : norm;
  for (Index i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<double>(x[i]) / divisor);
}

// out = W x
template <typename T>
void product(const T* weight, Index rows, Index cols, const T* x, T* out) {
  for (Index row = 0; row < rows; ++row) out[row] = dot(weight + row * cols, x, cols);
}

// out = W^T x, walking W along its rows, four at a time so that `out` is loaded and stored once for the four.
template <typename T>
void transposed_product(const T* __restrict__ weight, Index rows, Index cols, const T* __restrict__ x,
                        T* __restrict__ out) {
  std::fill_n(out, cols, T(0));
  Index row = 0;
  for (; row + 4 <= rows; row += 4) {
    const T* __restrict__ w0 = weight + row * cols;
    const T* __restrict__ w1 = w0 + cols;
    const T* __restrict__ w2 = w1 + cols;
    const T* __restrict__ w3 = w2 + cols;
    const T x0 = x[row], x1 = x[row + 1], x2 = x[row + 2], x3 = x[row + 3];
    for (Index col = 0; col < cols; ++col) {
      out[col] += (x0 * w0[col] + x1 * w1[col]) + (x2 * w2[col] + x3 * w3[col]);
    }
  }
  for (; row < rows; ++row) {
    const T* __restrict__ w = weight + row * cols;
    const T scale = x[row];
    for (Index col = 0; col < cols; ++col) out[col] += scale * w[col];
  }
}

}  // namespace

template <typename T>
T power_iteration(const T* weight, std::int64_t rows, std::int64_t cols, T* u, T* v, std::int64_t n_iterations,
                  double eps) {
  std::vector<T> weight_v(static_cast<std::size_t>(rows));
  if (n_iterations == 0) product(weight, rows, cols, v, weight_v.data());
  for (Index iteration = 0; iteration < n_iterations; ++iteration) {
    transposed_product(weight, rows, cols, u, v);
    normalise(v, v, cols, eps);
    product(weight, rows, cols, v, weight_v.data());
    normalise(weight_v.data(), u, rows, eps);
  }
  return static_cast<T>(dot_in_double(u, weight_v.data(), rows));
}

template float power_iteration<float>(const float*, std::int64_t, std::int64_t, float*, float*, std::int64_t, double);
template double power_iteration<double>(const double*, std::int64_t, std::int64_t, double*, double*, std::int64_t,
                                        double);

}  // namespace vitgan
