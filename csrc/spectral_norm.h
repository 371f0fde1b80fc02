// Spectral normalisation of all matrices of a model in one call: power iteration, sigma, the scaled weights, and the
// gradient. spectral_norm.cpp computes it on the CPU, spectral_norm.cu on a CUDA device, by the same algorithm.
//
// A weight is seen as its memory lies, M (rows, cols) row-major, with `left` (rows) and `right` (cols). It is W itself,
// with u = left and v = right, or where `transposed` the transpose of W, with u = right and v = left. An iteration is
//   v <- W^T u / max(|W^T u|, eps),  then  u <- W v / max(|W v|, eps),
// so the half that comes first moves `right`, or where transposed `left`. After the last one
//   sigma = u^T W v,  scaled = (goal / sigma) * W.
//
// With u and v constants, from G, the gradient of `scaled`, and g, that of sigma:
//   dW = (goal / sigma) * G + (g - goal * <G, W> / sigma^2) * u v^T.
//
// Every sum is taken in an order that the shape of its matrix fixes: equal inputs give equal bits, on any number of
// threads and of blocks. Not-a-number and infinity in the inputs reach the results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vitgan {

// One matrix. rows, cols >= 1. Nothing that is written overlaps anything else, except a copy that is its original.
struct Matrix {
  std::int64_t rows, cols;
  bool transposed;
  const void* weight;
  void *left, *right;            // moved in place where n_iterations > 0
  void *left_copy, *right_copy;  // where the vectors are stored a second time, for the backward pass
  void* scaled;
};

struct Gradient {
  std::int64_t rows, cols;
  const void* weight;
  const void *left, *right;  // as the forward pass left them
  const void* grad_scaled;
  void* grad_weight;
};

// goals, grad_sigma: one number a matrix, or null, which means 1 and 0. sigma: one number a matrix.

// CPU, T = float or double. Floor, for n iterations on N elements of all matrices together: W is read 2 n + 1 times
// and written once, (2 n + 2) N sizeof(T) bytes (one read and one write from memory where a matrix stays in cache),
// 4 n N + N operations. Backward: G and W are read, G again, dW written: 4 N sizeof(T) bytes, 5 N operations.
template <typename T>
void spectral_norm(const std::vector<Matrix>& matrices, const T* goals, T* sigma, std::int64_t n_iterations, double eps,
                   int threads);
template <typename T>
void spectral_norm_backward(const std::vector<Gradient>& matrices, const T* goals, const T* sigma, const T* grad_sigma,
                            int threads);

namespace cuda {

enum class Dtype { float32, bfloat16, float16 };  // of `scaled` and `grad_scaled`; all else is float32

// Where and how a call runs. All work is put on the stream; nothing is allocated and nothing waits for the device.
struct Launch {
  int device;
  void* stream;      // a cudaStream_t
  void* workspace;   // device memory of at least workspace_bytes
  bool cooperative;  // one launch with barriers across the grid, where the device can; otherwise one for each phase
};

std::size_t workspace_bytes(const std::vector<Matrix>& matrices);
std::size_t workspace_bytes(const std::vector<Gradient>& matrices);

// Both throw std::runtime_error with CUDA's own text on any error.
void spectral_norm(const std::vector<Matrix>& matrices, Dtype scaled, const float* goals, float* sigma,
                   std::int64_t n_iterations, double eps, const Launch& launch);
void spectral_norm_backward(const std::vector<Gradient>& matrices, Dtype grad_scaled, const float* goals,
                            const float* sigma, const float* grad_sigma, const Launch& launch);

// Throws unless the kernels can run on the device.
void check_device(int device);

}  // namespace cuda
}  // namespace vitgan
