// What the forward and the backward pass share on a CUDA device: how a matrix is cut into tasks, sums over a block in a
// fixed order, and launches whose every error is an exception.
//
// A call is a row of phases. A phase is cut into tasks, each a part of one matrix that a block works on alone, and
// every sum has an order that the task fixes, so results do not depend on the grid. Between phases the whole grid has
// to be done: a cooperative launch has a barrier for it, and where that is not to be had each phase is its own launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "spectral_norm.h"

namespace vitgan {
namespace cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr int kBlocksPerProcessor = 4;   // at the least; more registers than that leaves do not help a sum
constexpr int kRowTaskElements = 12288;  // a task that goes by rows: about so many elements
constexpr int kMostRowsOfAWarp = 4;  // in such a task

// The matrices go to the kernel by value, within the 4 KB of parameters that every device and driver takes.
constexpr int kMatricesPerLaunch = 40;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Rows of a task that goes by rows: a multiple of the warps, so that all have the same number.
__host__ __device__ inline int task_rows(int cols) {
  const int each = kRowTaskElements / kWarps / cols;
  return kWarps * (each < 1 ? 1 : each > kMostRowsOfAWarp ? kMostRowsOfAWarp : each);
}

__host__ __device__ inline int row_tasks(int rows, int cols) { return ceil_div(rows, task_rows(cols)); }

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

// The elements of a matrix that are one task's, by rows.
struct Elements {
  size_t first, end;

  __device__ __forceinline__ Elements(int task, int rows, int cols)
      : first(static_cast<size_t>(task) * task_rows(cols) * cols),
        end(min(first + static_cast<size_t>(task_rows(cols)) * cols, static_cast<size_t>(rows) * cols)) {}
};

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

}  // namespace
}  // namespace cuda
}  // namespace vitgan
