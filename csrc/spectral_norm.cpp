// The CPU's side of spectral_norm.h. A matrix is the work of one thread, which passes over it while it is in cache.
#include "spectral_norm.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "threads.h"

// Loops over whole matrices are compiled for wider vector registers too, and the machine takes its own at load time.
// The sums are written lane by lane, and the build contracts no product and sum (-ffp-contract=off): all give the same
// bits, on any x86-64 machine and number of threads.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define VITGAN_FOR_EACH_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VITGAN_FOR_EACH_SIMD
#endif

namespace vitgan {
namespace {

using Index = std::int64_t;

// A compiler may not reorder a floating-point sum, so a sum with one accumulator is not vectorised. Sixteen
// accumulators are sixteen independent sums: they fill the vector registers, and their order is fixed here.
constexpr Index kLanes = 16;

// Waking a thread costs about as much as passing over so many elements.
constexpr Index kElementsWorthAThread = 1 << 16;

template <typename T>
__attribute__((always_inline)) inline T dot(const T* __restrict__ a, const T* __restrict__ b, Index n) {
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

// out = M right
template <typename T>
VITGAN_FOR_EACH_SIMD void times_right(const T* matrix, Index rows, Index cols, const T* right, T* out) {
  for (Index row = 0; row < rows; ++row) out[row] = dot(matrix + row * cols, right, cols);
}

// out = M^T left, walking M along its rows, four at a time so that `out` is loaded and stored once for the four. The
// processor foresees one row better than four: the next four are asked for in the order of memory.
template <typename T>
VITGAN_FOR_EACH_SIMD void times_left(const T* __restrict__ matrix, Index rows, Index cols, const T* __restrict__ left,
                                     T* __restrict__ out) {
  constexpr Index kLine = 64 / sizeof(T);
  std::fill_n(out, cols, T(0));
  Index row = 0;
  for (; row + 4 <= rows; row += 4) {
    const T* __restrict__ m0 = matrix + row * cols;
    const T* __restrict__ m1 = m0 + cols;
    const T* __restrict__ m2 = m1 + cols;
    const T* __restrict__ m3 = m2 + cols;
    const T* const next = row + 8 <= rows ? m3 + cols : m0;
    const T x0 = left[row], x1 = left[row + 1], x2 = left[row + 2], x3 = left[row + 3];
    const auto add = [&](Index col) { out[col] += (x0 * m0[col] + x1 * m1[col]) + (x2 * m2[col] + x3 * m3[col]); };
    Index col = 0;
    for (; col + kLine <= cols; col += kLine) {
      for (Index line = 0; line < 4; ++line) __builtin_prefetch(next + 4 * col + line * kLine);
      for (Index lane = 0; lane < kLine; ++lane) add(col + lane);
    }
    for (; col < cols; ++col) add(col);
  }
  for (; row < rows; ++row) {
    const T* __restrict__ m = matrix + row * cols;
    const T x = left[row];
    for (Index col = 0; col < cols; ++col) out[col] += x * m[col];
  }
}

template <typename T>
VITGAN_FOR_EACH_SIMD void multiply(const T* __restrict__ x, T scale, T* __restrict__ out, Index n) {
  for (Index i = 0; i < n; ++i) out[i] = x[i] * scale;
}

// <A, B>, rows in T and their sum in double
template <typename T>
VITGAN_FOR_EACH_SIMD double inner_product(const T* a, const T* b, Index rows, Index cols) {
  double sum = 0.0;
  for (Index row = 0; row < rows; ++row) sum += static_cast<double>(dot(a + row * cols, b + row * cols, cols));
  return sum;
}

// out = scale * G + along * left right^T
template <typename T>
VITGAN_FOR_EACH_SIMD void combine(const T* __restrict__ grad, Index rows, Index cols, T scale, double along,
                                  const T* __restrict__ left, const T* __restrict__ right, T* __restrict__ out) {
  for (Index row = 0; row < rows; ++row) {
    const T factor = static_cast<T>(along * static_cast<double>(left[row]));
    const T* const g = grad + row * cols;
    T* const o = out + row * cols;
    for (Index col = 0; col < cols; ++col) o[col] = scale * g[col] + factor * right[col];
  }
}

// `product` is scratch for max(rows, cols) numbers.
template <typename T>
void normalise_one(const Matrix& m, const T* goal, T* sigma, Index n_iterations, double eps, T* product) {
  const T* const weight = static_cast<const T*>(m.weight);
  T* const left = static_cast<T*>(m.left);
  T* const right = static_cast<T*>(m.right);
  const auto towards_left = [&] { times_right(weight, m.rows, m.cols, right, product); };
  const auto towards_right = [&] { times_left(weight, m.rows, m.cols, left, product); };

  for (Index half = 0; half < 2 * n_iterations; ++half) {
    if ((half % 2 == 0) == m.transposed) {
      towards_left();
      normalise(product, left, m.rows, eps);
    } else {
      towards_right();
      normalise(product, right, m.cols, eps);
    }
  }
  // after an iteration the product that sigma needs is there already: it made the vector that moved last
  if (n_iterations == 0) m.transposed ? towards_right() : towards_left();
  *sigma = static_cast<T>(m.transposed ? dot_in_double(right, product, m.cols) : dot_in_double(left, product, m.rows));

  if (m.left_copy != m.left) std::copy_n(left, m.rows, static_cast<T*>(m.left_copy));
  if (m.right_copy != m.right) std::copy_n(right, m.cols, static_cast<T*>(m.right_copy));
  multiply(weight, (goal ? *goal : T(1)) / *sigma, static_cast<T*>(m.scaled), m.rows * m.cols);
}

template <typename T>
void gradient_of_one(const Gradient& m, const T* goal, T sigma, const T* grad_sigma) {
  const T* const weight = static_cast<const T*>(m.weight);
  const T* const grad = static_cast<const T*>(m.grad_scaled);
  const double inner = inner_product(weight, grad, m.rows, m.cols);
  const double scale = (goal ? static_cast<double>(*goal) : 1.0) / static_cast<double>(sigma);
  const double along = (grad_sigma ? static_cast<double>(*grad_sigma) : 0.0) - scale * inner / sigma;
  combine(grad, m.rows, m.cols, static_cast<T>(scale), along, static_cast<const T*>(m.left),
          static_cast<const T*>(m.right), static_cast<T*>(m.grad_weight));
}

// work(matrix) for each matrix once, the largest first, on up to so many threads. Which thread takes which matrix
// changes no result.
template <typename M, typename Work>
void for_each_matrix(const std::vector<M>& matrices, int threads, const Work& work) {
  std::vector<std::size_t> order(matrices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return matrices[a].rows * matrices[a].cols > matrices[b].rows * matrices[b].cols;
  });
  parallel_for(static_cast<Index>(order.size()), threads,
               [&](Index i) { work(order[static_cast<std::size_t>(i)]); });
}

template <typename M>
int useful_threads(const std::vector<M>& matrices, int threads) {
  Index elements = 0;
  for (const M& m : matrices) elements += m.rows * m.cols;
  const Index useful = std::min<Index>(elements / kElementsWorthAThread, static_cast<Index>(matrices.size()));
  return static_cast<int>(std::clamp<Index>(useful, 1, std::max(threads, 1)));
}

}  // namespace

template <typename T>
void spectral_norm(const std::vector<Matrix>& matrices, const T* goals, T* sigma, std::int64_t n_iterations, double eps,
                   int threads) {
  for_each_matrix(matrices, useful_threads(matrices, threads), [&](std::size_t i) {
    const Matrix& m = matrices[i];
    T* const product = static_cast<T*>(scratch(static_cast<std::size_t>(std::max(m.rows, m.cols)) * sizeof(T)));
    normalise_one(m, goals ? goals + i : nullptr, sigma + i, n_iterations, eps, product);
  });
}

template <typename T>
void spectral_norm_backward(const std::vector<Gradient>& matrices, const T* goals, const T* sigma, const T* grad_sigma,
                            int threads) {
  for_each_matrix(matrices, useful_threads(matrices, threads), [&](std::size_t i) {
    gradient_of_one(matrices[i], goals ? goals + i : nullptr, sigma[i], grad_sigma ? grad_sigma + i : nullptr);
  });
}

template void spectral_norm<float>(const std::vector<Matrix>&, const float*, float*, std::int64_t, double, int);
template void spectral_norm<double>(const std::vector<Matrix>&, const double*, double*, std::int64_t, double, int);
template void spectral_norm_backward<float>(const std::vector<Gradient>&, const float*, const float*, const float*,
                                            int);
template void spectral_norm_backward<double>(const std::vector<Gradient>&, const double*, const double*, const double*,
                                             int);

}  // namespace vitgan
