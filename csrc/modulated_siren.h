// A stack of modulated linear layers with sines between them, and its gradients, on the CPU. For one layer,
//   u = x * style,  q = scale * (u W^T) + bias,  y = sin(omega q), or q after the last layer without `sine`,
// where scale is 1, given, or the demodulation rsqrt((style^2) (W^2)^T + eps).
//
// Gradients, from that of y:
//   q' = omega cos(omega q) y';  bias' = sum q';  scale' = sum_p q' (u W^T);  c' = scale q';  W' = c'^T u;
//   u' = c' W;  style' = sum_p u' x;  x' = u' style;
// and through the demodulation, t = scale' scale^3: W' -= W (t^T style^2), style' -= style (t W^2).
//
// Floor: 2 I O operations a layer and row of x forward, 4 I O more backward (2 I O again where products were not kept);
// x, weights, styles and the output are read or written once, and kept products written and read once, 8 O bytes a row.
//
// Rows go through all layers in units of about 100, which stay in cache. Which rows form a unit, and every sum over rows,
// is cut by the shapes alone: bits do not depend on the number of threads, and those of a sample not on the others.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "levels.h"

namespace vitgan {

// Floats in a row of padded memory
inline int64_t wide(int64_t n) { return (n + 15) / 16 * 16; }

// Tensors are contiguous, in the dtype of the stack unless they are float; null where absent or not needed.
struct SirenLayer {
  int64_t inputs, outputs;
  const void *weight, *style, *bias;     // (O, I), (B, I), (O)
  float* scale;                          // (B, O): given, or where to store the demodulation
  float* products;                       // u W^T, (B P, wide(O)): kept for the backward pass
  void *grad_weight, *grad_style, *grad_bias;
  float* grad_scale;                     // (B, O), of a given scale
};

struct Siren {
  int64_t batch, points, depth;
  SirenLayer* layers;
  float omega, eps;
  bool sine, shared, bf16, demodulate;  // after the last layer too; x is (P, I); tensors but floats; scales from styles
  const void* x;                        // (P, I) or (B, P, I)
  void* out;                            // (B, P, O)
  const void* grad;
  void* grad_x;

  // Whether the backward pass needs the products of a layer, and has them all.
  bool needs_products(int64_t l) const { return l + 1 < depth || sine || layers[l].scale; }
  bool kept() const {
    for (int64_t l = 0; l < depth; ++l) {
      if (needs_products(l) && !layers[l].products) return false;
    }
    return true;
  }
};

void siren_forward(const Siren& call, int threads);
void siren_backward(const Siren& call, int threads);

// --- What the levels provide, for modulated_siren.cpp.

struct SirenLayerPlan {
  const void *forward, *backward;          // the weight, packed for u W^T and for c' W
  const float *bias, *squares;             // zeros where there is none; W^2, packed for the demodulation
  float *slot_style, *slot_scale;          // (slots, wide(I)) and (slots, wide(O)): sums over the points of a unit
  float *factors, *style_squares;          // (B, wide(O)) and (B, wide(I)): of the gradient through the demodulation
};

struct SirenPlan {
  const Siren* call;
  SirenLayerPlan* layers;
  const float* shared_x;                   // (P, wide(I)), or null
  int64_t samples, parts, units;           // a unit is so many whole samples, or one of the parts of one
  bool tiles;                              // products of bfloat16 on AMX
};

// Where one lane, units one after the other, adds up what is summed over samples; null where that is not needed. Its
// first unit overwrites, but x begins with zeros.
struct SirenSums {
  float **weights, **biases;               // (wide(O), wide(I)); (2, wide(O)): the sum, and what it has rounded off
  float* x;                                // (P, wide(I))
};

// What returns a size takes so many bytes of memory; without memory it does nothing else.
struct SirenKernels {
  bool have_tiles;
  int64_t rows, rows_on_tiles;             // of a unit, at most
  size_t (*pack)(SirenPlan&, bool backward, void* memory);
  size_t (*units)(const SirenPlan&, long long first, long long last, const SirenSums*, bool backward, void* memory);
  size_t (*demodulate)(const SirenPlan&, long long layer, long long first, long long last, void* memory);
  size_t (*finish_samples)(const SirenPlan&, long long layer, long long first, long long last, void* memory);
  size_t (*finish_weight)(const SirenPlan&, long long layer, long long first, long long last, const SirenSums* lanes,
                          long long count, void* memory);
  void (*finish_sums)(const SirenPlan&, long long layer, long long first, long long last, const SirenSums* lanes,
                      long long count, void* row);
};

VITGAN_PER_LEVEL(SirenKernels, siren_kernels)

}  // namespace vitgan
