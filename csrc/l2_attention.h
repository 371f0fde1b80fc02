// L2 attention on the CPU, forward and two orders of backward: the mathematics is in closed_form.py of the Python package.
// Inputs and results are float or bfloat16, all arithmetic is float. Scores exist a block of rows at a time: memory grows
// with N + M. Results depend on one (batch, head) alone, by sums in an order that N, M, d and e fix: the same bits for any
// number of threads and any split of the batch.
//
// Floor of a head: forward 2 N M (d + e) operations, backward 2 N M (3 d + 2 e), double backward 2 N M (6 d + 6 e), of which
// the euclidean metric pays those of distances and of its gradients twice. Bytes: each input and result once.
#pragma once

#include "levels.h"

namespace vitgan {

struct L2View {  // (B, H, tokens, features), features adjacent, strides in elements
  void* data;
  long long batch, head, token;
};

struct L2Call {
  long long B, H, N, M, d, e;
  float scale;
  bool euclidean, tied, bf16;
  L2View q, k, v, out, grad;       // tied: k is q, dk is dq and b is a
  L2View a, b, c;                  // cotangents of dq, dk and dv
  L2View dq, dk, dv, dout;         // results of the backward passes
  float* shift;                    // (B, H, N): subtracted from a row's scores, which are in base 2
  float* inverse;                  // (B, H, N): 1 / sum_j 2^(s_ij - shift_i)
};

// Each is of rows first, first + 1, ... of one (batch, head). A backward call leaves what these rows add to the gradients of
// the keys (where tied, of all tokens) in `sums`; `write_sums` writes the whole of it.
struct L2Kernels {
  long long (*memory_size)(const L2Call&, int order);  // floats of scratch memory that a call needs
  long long (*sums_size)(const L2Call&);               // floats
  void (*forward)(const L2Call&, long long head, long long first, long long rows, float* memory);
  void (*backward)(const L2Call&, long long head, long long first, long long rows, float* sums, float* memory);
  void (*double_backward)(const L2Call&, long long head, long long first, long long rows, float* sums, float* memory);
  void (*write_sums)(const L2Call&, long long head, const float* sums);
};

VITGAN_PER_LEVEL(L2Kernels, l2_kernels)

void l2_forward(const L2Call& call, int threads);
void l2_backward(const L2Call& call, int threads);
void l2_double_backward(const L2Call& call, int threads);

}  // namespace vitgan
