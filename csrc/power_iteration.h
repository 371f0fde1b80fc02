// Power iteration for the largest singular value of one matrix, on the CPU.
//
// Floor: an iteration reads W twice, 2 * rows * cols * sizeof(T) bytes, and does 4 * rows * cols operations; with no
// iteration, sigma alone reads W once. The vectors u (rows) and v (cols) are small beside it and stay in cache.
#pragma once

#include <cstdint>

namespace vitgan {

// n_iterations times, in place:  v <- W^T u / max(|W^T u|, eps),  u <- W v / max(|W v|, eps).
// Returns sigma = u^T W v. Needs rows, cols >= 1, n_iterations >= 0, and no overlap of weight, u and v.
//
// weight is (rows, cols) = (out, in), contiguous and row-major; u has rows elements, v has cols.
// Every sum is taken in an order that depends on the shape alone: equal inputs give equal bits.
// Not-a-number and infinity in the inputs reach the result.
template <typename T>
T power_iteration(const T* weight, std::int64_t rows, std::int64_t cols, T* u, T* v, std::int64_t n_iterations,
                  double eps);

extern template float power_iteration<float>(const float*, std::int64_t, std::int64_t, float*, float*, std::int64_t,
                                             double);
extern template double power_iteration<double>(const double*, std::int64_t, std::int64_t, double*, double*,
                                               std::int64_t, double);

}  // namespace vitgan
