// The CUDA side of spectral_norm.h, forward: all matrices of a model in one launch. Each half of an iteration is a
// phase (a product with every matrix), and scaling is the last; spectral_norm.cuh says how phases run.
//
// A product is stored as it comes out ("raw"). Whoever reads it first takes its norm, each block for itself: that is a
// few kilobytes out of the L2 cache, and costs less than another barrier.
//
// Floor, for n iterations on N elements of all matrices together, with `scaled` of b bytes an element: from memory W
// once and `scaled` once, (4 + b) N bytes, if the matrices stay in the L2 cache; W is read 2 n + 1 times in all,
// (8 n + 4 + b) N bytes where they do not. 4 n N + N operations and 2 n barriers.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "spectral_norm.cuh"
#include "spectral_norm.h"

namespace vitgan {
namespace cuda {
namespace {

constexpr int kStripRows = 512;  // a task of M^T left: so many rows of 32 columns
constexpr int kChunk = 2048;     // columns of `right` that a block holds in shared memory at a time

enum Phase { kFirstHalf, kSecondHalf, kScale, kPhases };

struct MatrixEntry {
  const float* weight;
  float *left, *right, *left_copy, *right_copy;
  void* scaled;
  float *raw_left, *raw_right;  // products: (rows), (segments, cols)
  int rows, cols, transposed;
  int first_task[kPhases];
};

struct Table {
  MatrixEntry matrices[kMatricesPerLaunch];
  const float* goals;
  float* sigma;
  double eps;
  Dtype scaled_dtype;
  int count;
  int n_iterations;
  int tasks[kPhases];
};
static_assert(sizeof(Table) <= 4096 - 64, "the table must fit into the parameters of a kernel, beside a few more");

__host__ __device__ inline int strip_segments(int rows) { return ceil_div(rows, kStripRows); }
__host__ __device__ inline int strip_tasks(int rows, int cols) { return strip_segments(rows) * ceil_div(cols, kWarp); }

// left or right, normalised: as it was given to the call, or from the raw product that the phase before has stored.
struct Vector {
  float *given, *copy;
  const float* raw;  // (segments, size), to be added up; null: as given
  int size, segments;

  __device__ __forceinline__ float product(int i) const {
    float sum = raw[i];
    for (int segment = 1; segment < segments; ++segment) sum += raw[segment * size + i];
    return sum;
  }

  // What each element is to be divided by; in double, because squares leave float's range long before the values do.
  __device__ __forceinline__ double divisor(double eps) const {
    if (!raw) return 1.0;
    double sum = 0.0;
    for (int i = threadIdx.x; i < size; i += kThreads) {
      const double x = product(i);
      sum += x * x;
    }
    const double norm = sqrt(block_sum(sum));
    return norm < eps ? eps : norm;  // a norm that is not a number stays one
  }

  __device__ __forceinline__ float element(int i, double divisor) const {
    return raw ? static_cast<float>(product(i) / divisor) : given[i];
  }

  __device__ __forceinline__ void store(double divisor) const {
    for (int i = threadIdx.x; i < size; i += kThreads) {
      const float x = element(i, divisor);
      if (raw) given[i] = x;
      if (copy != given) copy[i] = x;
    }
  }
};

__device__ __forceinline__ Vector left_of(const MatrixEntry& m, bool given) {
  return {m.left, m.left_copy, given ? nullptr : m.raw_left, m.rows, 1};
}

__device__ __forceinline__ Vector right_of(const MatrixEntry& m, bool given) {
  return {m.right, m.right_copy, given ? nullptr : m.raw_right, m.cols, strip_segments(m.rows)};
}

// raw_right = M^T left. A task is 32 columns of one segment of the rows; a warp takes every eighth row.
__device__ __forceinline__ void towards_right(const MatrixEntry& m, int task, bool given, double eps) {
  __shared__ float factors[kStripRows];
  __shared__ float parts[kWarps][kWarp];
  const int strips = ceil_div(m.cols, kWarp);
  const int segment = task / strips;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int col = task % strips * kWarp + lane;
  const int first_row = segment * kStripRows;
  const int rows = min(kStripRows, m.rows - first_row);

  const Vector left = left_of(m, given);
  const double divisor = left.divisor(eps);
  if (task == 0) left.store(divisor);
  for (int row = threadIdx.x; row < rows; row += kThreads) factors[row] = left.element(first_row + row, divisor);
  __syncthreads();

  float sum = 0.f;
  if (col < m.cols) {
    const float* const column = m.weight + static_cast<size_t>(first_row) * m.cols + col;
#pragma unroll 8
    for (int row = warp; row < rows; row += kWarps) sum += factors[row] * column[static_cast<size_t>(row) * m.cols];
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && col < m.cols) {
    sum = parts[0][lane];
    for (int other = 1; other < kWarps; ++other) sum += parts[other][lane];
    m.raw_right[static_cast<size_t>(segment) * m.cols + col] = sum;
  }
  __syncthreads();
}

// raw_left = M right. A task is a group of rows; a warp takes every eighth of them.
__device__ __forceinline__ void towards_left(const MatrixEntry& m, int task, bool given, double eps) {
  __shared__ float factors[kChunk];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first_row = task * task_rows(m.cols);
  const int rows = min(task_rows(m.cols), m.rows - first_row);

  const Vector right = right_of(m, given);
  const double divisor = right.divisor(eps);
  if (task == 0) right.store(divisor);
  for (int first_col = 0; first_col < m.cols; first_col += kChunk) {
    const int cols = min(kChunk, m.cols - first_col);
    for (int col = threadIdx.x; col < cols; col += kThreads) factors[col] = right.element(first_col + col, divisor);
    __syncthreads();
    for (int row = warp; row < rows; row += kWarps) {
      const float* const line = m.weight + static_cast<size_t>(first_row + row) * m.cols + first_col;
      float sum = 0.f;
#pragma unroll 8
      for (int col = lane; col < cols; col += kWarp) sum += line[col] * factors[col];
      sum = warp_sum(sum);
      if (lane == 0) m.raw_left[first_row + row] = sum + (first_col > 0 ? m.raw_left[first_row + row] : 0.f);
    }
    __syncthreads();
  }
}

template <typename Out>
__device__ __forceinline__ void multiply(const float* weight, float factor, void* scaled, Elements elements) {
#pragma unroll 8
  for (size_t i = elements.first + threadIdx.x; i < elements.end; i += kThreads) {
    static_cast<Out*>(scaled)[i] = static_cast<Out>(weight[i] * factor);
  }
}

// sigma = u^T W v from the last raw product, which the vector that moved last was made of; scaled = W goal / sigma.
__device__ __forceinline__ void scale(const Table& table, const MatrixEntry& m, int index, int task, bool given) {
  const Vector last = m.transposed ? right_of(m, false) : left_of(m, false);
  const double divisor = given ? 1.0 : last.divisor(table.eps);
  double part = 0.0;
  for (int i = threadIdx.x; i < last.size; i += kThreads) {
    part += static_cast<double>(given ? last.given[i] : last.element(i, divisor)) * last.product(i);
  }
  const float sigma = static_cast<float>(block_sum(part));
  if (task == 0) {
    if (threadIdx.x == 0) table.sigma[index] = sigma;
    (given ? (m.transposed ? right_of(m, true) : left_of(m, true)) : last).store(divisor);
  }
  const float factor = (table.goals ? table.goals[index] : 1.f) / sigma;
  const Elements elements(task, m.rows, m.cols);
  switch (table.scaled_dtype) {
    case Dtype::float32: multiply<float>(m.weight, factor, m.scaled, elements); break;
    case Dtype::bfloat16: multiply<__nv_bfloat16>(m.weight, factor, m.scaled, elements); break;
    case Dtype::float16: multiply<__half>(m.weight, factor, m.scaled, elements); break;
  }
}

// All tasks of a phase, shared out over the grid. `given`: the phase reads vectors as the caller gave them.
__device__ __forceinline__ void run_phase(const Table& table, int phase, bool given) {
  int index = 0;
  for (int task = blockIdx.x; task < table.tasks[phase]; task += gridDim.x) {
    while (index + 1 < table.count && table.matrices[index + 1].first_task[phase] <= task) ++index;
    const MatrixEntry& m = table.matrices[index];
    const int own = task - m.first_task[phase];
    if (phase == kScale) {
      scale(table, m, index, own, given);
    } else if ((phase == kSecondHalf) == (m.transposed != 0)) {
      towards_right(m, own, given, table.eps);
    } else {
      towards_left(m, own, given, table.eps);
    }
  }
}

// The phases of a call in their order: the halves of all iterations (of none, the one product that sigma needs), then
// the scaling. Runs those from `first` to before `end`; more than one only in a cooperative launch.
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    normalise(const __grid_constant__ Table table, int first, int end) {
  const bool moving = table.n_iterations > 0;
  const int last = moving ? 2 * table.n_iterations : 1;
  for (int step = first; step < end; ++step) {
    if (step > first) cooperative_groups::this_grid().sync();
    const int phase = step == last ? kScale : moving && step % 2 == 0 ? kFirstHalf : kSecondHalf;
    run_phase(table, phase, moving ? step == 0 : true);
  }
}

std::size_t workspace_floats(std::int64_t rows, std::int64_t cols) {
  return static_cast<std::size_t>(rows + (rows + kStripRows - 1) / kStripRows * cols);
}

}  // namespace

std::size_t workspace_bytes(const std::vector<Matrix>& matrices) {
  std::size_t floats = 0;
  for (const Matrix& m : matrices) floats += workspace_floats(m.rows, m.cols);
  return floats * sizeof(float);
}

void spectral_norm(const std::vector<Matrix>& matrices, Dtype scaled, const float* goals, float* sigma,
                   std::int64_t n_iterations, double eps, const Launch& launch) {
  const OnDevice on_device(launch.device);
  float* workspace = static_cast<float*>(launch.workspace);
  for (std::size_t first = 0; first < matrices.size(); first += kMatricesPerLaunch) {
    Table table{};
    table.goals = goals ? goals + first : nullptr;
    table.sigma = sigma + first;
    table.eps = eps;
    table.scaled_dtype = scaled;
    table.count = static_cast<int>(std::min<std::size_t>(kMatricesPerLaunch, matrices.size() - first));
    table.n_iterations = static_cast<int>(n_iterations);
    for (int i = 0; i < table.count; ++i) {
      const Matrix& m = matrices[first + static_cast<std::size_t>(i)];
      check_size(m);
      MatrixEntry& entry = table.matrices[i];
      entry.weight = static_cast<const float*>(m.weight);
      entry.left = static_cast<float*>(m.left);
      entry.right = static_cast<float*>(m.right);
      entry.left_copy = static_cast<float*>(m.left_copy);
      entry.right_copy = static_cast<float*>(m.right_copy);
      entry.scaled = m.scaled;
      entry.raw_left = workspace;
      entry.raw_right = workspace + m.rows;
      entry.rows = static_cast<int>(m.rows);
      entry.cols = static_cast<int>(m.cols);
      entry.transposed = m.transposed;
      workspace += workspace_floats(m.rows, m.cols);
      const int by_rows = row_tasks(entry.rows, entry.cols), by_strips = strip_tasks(entry.rows, entry.cols);
      const int tasks[kPhases] = {m.transposed ? by_rows : by_strips, m.transposed ? by_strips : by_rows, by_rows};
      for (int phase = 0; phase < kPhases; ++phase) {
        entry.first_task[phase] = table.tasks[phase];
        table.tasks[phase] += tasks[phase];
      }
    }
    const int most = *std::max_element(table.tasks, table.tasks + kPhases);
    run(normalise, table, most, n_iterations > 0 ? 2 * table.n_iterations + 1 : 2, launch);
  }
}

void check_device(int device) {
  const OnDevice on_device(device);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, normalise), "loading the kernels");
}

}  // namespace cuda
}  // namespace vitgan
