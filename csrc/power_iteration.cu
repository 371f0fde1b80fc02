// The CUDA side of power_iteration.h: all matrices of a model in one launch.
//
// A call is a row of phases. Each half of an iteration is one (a product with every matrix), and scaling is the last;
// backward has two. A phase is cut into tasks, each a part of one matrix that a block works on alone, and every sum has
// an order that the task fixes, so results do not depend on the grid. Between phases the whole grid has to be done: a
// cooperative launch has a barrier for it, and where that is not to be had each phase is a launch of its own.
//
// A product is stored as it comes out ("raw"). Whoever reads it first takes its norm, each block for itself: that is a
// few kilobytes out of the L2 cache, and costs less than another barrier.
//
// Floor, for n iterations on N elements of all matrices together, with `scaled` of b bytes an element: from memory W
// once and `scaled` once, (4 + b) N bytes, if the matrices stay in the L2 cache; W is read 2 n + 1 times in all,
// (8 n + 4 + b) N bytes where they do not. 4 n N + N operations and 2 n barriers. Backward, with a gradient of b bytes:
// G and W are read, G again, dW written: (8 + b) N bytes, or (8 + 2 b) N; 5 N operations and one barrier.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "power_iteration.h"

namespace vitgan {
namespace cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr int kBlocksPerProcessor = 4;  // at the least; more registers than that leaves do not help a sum
constexpr int kStripRows = 512;         // a task of M^T left: so many rows of 32 columns
constexpr int kRowTaskElements = 12288;  // a task that goes by rows: about so many elements, 8 to 32 rows
constexpr int kChunk = 2048;            // columns of `right` that a block holds in shared memory at a time

// The matrices go to the kernel by value, within the 4 KB of parameters that every device and driver takes.
constexpr int kMatricesPerLaunch = 40;

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

struct GradientEntry {
  const float *weight, *left, *right;
  const void* grad_scaled;
  float* grad_weight;
  int rows, cols;
  int first_task;
};

struct GradientTable {
  GradientEntry matrices[kMatricesPerLaunch];
  const float *goals, *sigma, *grad_sigma;
  double* inner_products;  // one for each task
  Dtype grad_dtype;
  int count;
  int tasks;
};
static_assert(sizeof(GradientTable) <= 4096 - 64, "the table must fit into the parameters of a kernel");

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Rows of a task that goes by rows: a multiple of the warps, so that all have the same number.
__host__ __device__ inline int task_rows(int cols) {
  const int groups = kRowTaskElements / kWarps / cols;
  return kWarps * (groups < 1 ? 1 : groups > 4 ? 4 : groups);
}

__host__ __device__ inline int row_tasks(int rows, int cols) { return ceil_div(rows, task_rows(cols)); }
__host__ __device__ inline int strip_segments(int rows) { return ceil_div(rows, kStripRows); }
__host__ __device__ inline int strip_tasks(int rows, int cols) { return strip_segments(rows) * ceil_div(cols, kWarp); }

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// The sum over the block, on every thread.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double parts[kWarps];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp];
  __syncthreads();
  return sum;
}

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

// The elements of a matrix that are one task's, by rows.
struct Elements {
  size_t first, end;

  __device__ __forceinline__ Elements(int task, int rows, int cols)
      : first(static_cast<size_t>(task) * task_rows(cols) * cols),
        end(min(first + static_cast<size_t>(task_rows(cols)) * cols, static_cast<size_t>(rows) * cols)) {}
};

template <typename Out>
__device__ __forceinline__ void multiply(const float* weight, float factor, void* scaled, Elements elements) {
#pragma unroll 8
  for (size_t i = elements.first + threadIdx.x; i < elements.end; i += kThreads) {
    static_cast<Out*>(scaled)[i] = static_cast<Out>(weight[i] * factor);
  }
}

// sigma = u^T W v from the last raw product, which the vector that moved last was made of; then scaled = W goal / sigma.
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

// The phases of a call in their order: the halves of all iterations (of none, the one product that sigma needs) and then
// the scaling. Runs those from `first` to before `end`; more than one only in a cooperative launch.
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) normalise(const __grid_constant__ Table table, int first, int end) {
  const bool moving = table.n_iterations > 0;
  const int last = moving ? 2 * table.n_iterations : 1;
  for (int step = first; step < end; ++step) {
    if (step > first) cooperative_groups::this_grid().sync();
    const int phase = step == last ? kScale : moving && step % 2 == 0 ? kFirstHalf : kSecondHalf;
    run_phase(table, phase, moving ? step == 0 : true);
  }
}

template <typename Grad>
__device__ __forceinline__ float partial_inner_product(const GradientEntry& m, Elements elements) {
  float sum = 0.f;
#pragma unroll 8
  for (size_t i = elements.first + threadIdx.x; i < elements.end; i += kThreads) {
    sum += static_cast<float>(static_cast<const Grad*>(m.grad_scaled)[i]) * m.weight[i];
  }
  return sum;
}

// One number for each task: <G, W> on its rows.
__device__ __forceinline__ void inner_product(const GradientTable& table, const GradientEntry& m, int task) {
  const Elements elements(task - m.first_task, m.rows, m.cols);
  float sum = 0.f;
  switch (table.grad_dtype) {
    case Dtype::float32: sum = partial_inner_product<float>(m, elements); break;
    case Dtype::bfloat16: sum = partial_inner_product<__nv_bfloat16>(m, elements); break;
    case Dtype::float16: sum = partial_inner_product<__half>(m, elements); break;
  }
  const double whole = block_sum(sum);
  if (threadIdx.x == 0) table.inner_products[task] = whole;
}

template <typename Grad>
__device__ __forceinline__ void combine_rows(const GradientEntry& m, int task, float scale, double along) {
  const int first_row = task * task_rows(m.cols);
  const int end = min(first_row + task_rows(m.cols), m.rows);
  for (int row = first_row + static_cast<int>(threadIdx.x) / kWarp; row < end; row += kWarps) {
    const float factor = static_cast<float>(along * m.left[row]);
    const size_t start = static_cast<size_t>(row) * m.cols;
    const Grad* const grad = static_cast<const Grad*>(m.grad_scaled) + start;
#pragma unroll 8
    for (int col = threadIdx.x % kWarp; col < m.cols; col += kWarp) {
      m.grad_weight[start + col] = scale * static_cast<float>(grad[col]) + factor * m.right[col];
    }
  }
}

// dW = scale * G + along * left right^T on the rows of one task.
__device__ __forceinline__ void combine(const GradientTable& table, const GradientEntry& m, int index, int task) {
  const double* const parts = table.inner_products + m.first_task;
  double inner = 0.0;
  for (int i = threadIdx.x; i < row_tasks(m.rows, m.cols); i += kThreads) inner += parts[i];
  inner = block_sum(inner);
  const double sigma = table.sigma[index];
  const double scale = (table.goals ? static_cast<double>(table.goals[index]) : 1.0) / sigma;
  const double along = (table.grad_sigma ? static_cast<double>(table.grad_sigma[index]) : 0.0) - scale * inner / sigma;
  switch (table.grad_dtype) {
    case Dtype::float32: combine_rows<float>(m, task, static_cast<float>(scale), along); break;
    case Dtype::bfloat16: combine_rows<__nv_bfloat16>(m, task, static_cast<float>(scale), along); break;
    case Dtype::float16: combine_rows<__half>(m, task, static_cast<float>(scale), along); break;
  }
}

// Step 0 takes the inner products, step 1 the gradients; both only in a cooperative launch.
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    gradients(const __grid_constant__ GradientTable table, int first, int end) {
  for (int step = first; step < end; ++step) {
    if (step > first) cooperative_groups::this_grid().sync();
    int index = 0;
    for (int task = blockIdx.x; task < table.tasks; task += gridDim.x) {
      while (index + 1 < table.count && table.matrices[index + 1].first_task <= task) ++index;
      const GradientEntry& m = table.matrices[index];
      if (step == 0) {
        inner_product(table, m, task);
      } else {
        combine(table, m, index, task - m.first_task);
      }
    }
  }
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // takes the error back, so that a later call does not report it again
  throw std::runtime_error(std::string("vitgan_kernels.spectral_norm: ") + what + ": " + cudaGetErrorName(error) +
                           ": " + cudaGetErrorString(error));
}

// Makes a device the current one, and the one before it current again.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "the current device");
    if (device == before_) before_ = -1;
    else check(cudaSetDevice(device), "setting the device");
  }
  ~OnDevice() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = -1;
};

// The most blocks that a cooperative launch of the kernel may have on the current device; 0 where it has none.
template <typename Kernel>
int cooperative_blocks(Kernel kernel, int device) {
  int able = 0, processors = 0, each = 0;
  check(cudaDeviceGetAttribute(&able, cudaDevAttrCooperativeLaunch, device), "asking for cooperative launches");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "asking for multiprocessors");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0), "asking for the occupancy");
  return able ? processors * each : 0;
}

// All steps of a kernel: in one cooperative launch, or where there is none, each in its own.
template <typename T>
void run(void (*kernel)(T, int, int), T& table, int tasks, int steps, const Launch& launch) {
  const auto stream = static_cast<cudaStream_t>(launch.stream);
  const int blocks = launch.cooperative ? std::min(tasks, cooperative_blocks(kernel, launch.device)) : 0;
  if (blocks > 0) {
    int first = 0, end = steps;
    void* arguments[] = {&table, &first, &end};
    check(cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(kThreads), arguments, 0, stream),
          "the cooperative launch");
    return;
  }
  for (int first = 0; first < steps; ++first) {
    int end = first + 1;
    void* arguments[] = {&table, &first, &end};
    check(cudaLaunchKernel(kernel, dim3(tasks), dim3(kThreads), arguments, 0, stream), "the launch of a phase");
  }
}

// Sizes that fit the kernels' int arithmetic: tasks and rows are counted in int, elements in size_t.
template <typename M>
void check_size(const M& m) {
  if (m.rows > (1 << 30) || m.cols > (1 << 30)) {
    throw std::runtime_error("vitgan_kernels.spectral_norm: a matrix has more than 2^30 rows or columns");
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

std::size_t workspace_bytes(const std::vector<Gradient>& matrices) {
  std::size_t tasks = 0;
  for (const Gradient& m : matrices) {
    check_size(m);
    tasks += static_cast<std::size_t>(row_tasks(static_cast<int>(m.rows), static_cast<int>(m.cols)));
  }
  return tasks * sizeof(double);
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

void spectral_norm_backward(const std::vector<Gradient>& matrices, Dtype grad_scaled, const float* goals,
                            const float* sigma, const float* grad_sigma, const Launch& launch) {
  const OnDevice on_device(launch.device);
  double* workspace = static_cast<double*>(launch.workspace);
  for (std::size_t first = 0; first < matrices.size(); first += kMatricesPerLaunch) {
    GradientTable table{};
    table.goals = goals ? goals + first : nullptr;
    table.sigma = sigma + first;
    table.grad_sigma = grad_sigma ? grad_sigma + first : nullptr;
    table.inner_products = workspace;
    table.grad_dtype = grad_scaled;
    table.count = static_cast<int>(std::min<std::size_t>(kMatricesPerLaunch, matrices.size() - first));
    for (int i = 0; i < table.count; ++i) {
      const Gradient& m = matrices[first + static_cast<std::size_t>(i)];
      check_size(m);
      GradientEntry& entry = table.matrices[i];
      entry.weight = static_cast<const float*>(m.weight);
      entry.left = static_cast<const float*>(m.left);
      entry.right = static_cast<const float*>(m.right);
      entry.grad_scaled = m.grad_scaled;
      entry.grad_weight = static_cast<float*>(m.grad_weight);
      entry.rows = static_cast<int>(m.rows);
      entry.cols = static_cast<int>(m.cols);
      entry.first_task = table.tasks;
      table.tasks += row_tasks(entry.rows, entry.cols);
    }
    workspace += table.tasks;
    run(gradients, table, table.tasks, 2, launch);
  }
}

void check_device(int device) {
  const OnDevice on_device(device);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, normalise), "loading the kernels");
}

}  // namespace cuda
}  // namespace vitgan
