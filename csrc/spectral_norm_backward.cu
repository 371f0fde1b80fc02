// The CUDA side of spectral_norm.h, backward: the gradients of all matrices in one launch of two phases, the inner
// products and then the rank-one updates; spectral_norm.cuh says how phases run.
//
// Floor, for N elements of all matrices together, with a gradient of b bytes an element: G and W are read, G again, dW
// written: (8 + b) N bytes from memory if G stays in the L2 cache, (8 + 2 b) N where not; 5 N operations, one barrier.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "spectral_norm.cuh"
#include "spectral_norm.h"

namespace vitgan {
namespace cuda {
namespace {

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

}  // namespace

std::size_t workspace_bytes(const std::vector<Gradient>& matrices) {
  std::size_t tasks = 0;
  for (const Gradient& m : matrices) {
    check_size(m);
    tasks += static_cast<std::size_t>(row_tasks(static_cast<int>(m.rows), static_cast<int>(m.cols)));
  }
  return tasks * sizeof(double);
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

}  // namespace cuda
}  // namespace vitgan
