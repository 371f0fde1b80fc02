// From the weights w_ij of a block of rows, what the gradients of queries and keys are made of:
//   row i:  sum_j w_ij (y_j - x_i)        key j:  sum_i w_ij (x_i - y_j)
// For the squared distance as products and row sums; for the distance, whose weights grow without bound where a query
// nears a key, from the differences themselves.
#pragma once

#include "l2_attention_head.h"

namespace vitgan {
namespace VITGAN_LEVEL {

// What rows add to the gradients of all keys: of K (M x dp), where tied of Q too, and of V (M x ep).
struct Sums {
  float *dK, *dV;
  Sums(const L2Call& call, Arena& arena) : dK(arena.take(call.M * up(call.d))), dV(arena.take(call.M * up(call.e))) {}
};

struct DifferenceMemory {
  float *row_sums, *key_sums, *part, *dQ;  // sums of the weights; row i's in parts (a vector each); a block of dQ
  DifferenceMemory(const Head& h, Arena& arena)
      : row_sums(arena.take(up(h.block))), key_sums(arena.take(h.Mp)), part(arena.take(up(h.block) * VL)),
        dQ(arena.take(h.block * h.dp)) {}

  void finish_sums(Index rows) const {
    for (Index i = rows; i < up(rows); ++i) store(part + i * VL, (vf){});
    for (Index i = 0; i < rows; i += VL) store(row_sums + i, vitgan::VITGAN_LEVEL::row_sums(part + i * VL, VL));
  }
};

struct DifferenceTo {
  float* rows;  // (rows x dp)
  bool add_to_rows;
  float* keys;  // (M x dp)
  bool add_to_keys;
};

// X += X^T for a square of n, a multiple of VL
static inline void add_transpose(float* x, Index n, Index ld) {
  for (Index i = 0; i < n; i += VL) {
    for (Index j = 0; j <= i; j += VL) {
      float *const below = x + i * ld + j, *const above = x + j * ld + i;
      vf r[VL];
      load_square(below, ld, r);
      exchange<1>(r);
      UNROLL
      for (int a = 0; a < VL; ++a) r[a] += load(above + a * ld);
      store_square(above, ld, r);
      if (i == j) continue;
      exchange<1>(r);
      store_square(below, ld, r);
    }
  }
}

// to_i -= sums_i * x_i
INLINE void subtract_scaled(float* to, Index n, Index ld, const float* sums, const float* more_sums, Rows x) {
  for (Index i = 0; i < n; ++i) {
    const vf s = splat(more_sums ? sums[i] + more_sums[i] : sums[i]);
    for (Index j = 0; j < ld; j += VL) store(to + i * ld + j, load(to + i * ld + j) - s * load(x.p + i * x.ld + j));
  }
}

// W (rows x Mp) is changed where it is the whole of a tied head, and then has memory for up(rows) rows. X begins with the
// block's first row.
static inline void add_differences(const Head& h, Index rows, float* W, Rows X, Rows Y, const DifferenceMemory& m,
                                   const DifferenceTo& to) {
  const bool euclidean = h.call.euclidean;
  if (h.call.tied && rows == h.N) {  // W + W^T serves rows and keys at once
    fill(W + rows * h.Mp, 0, (h.Mp - rows) * h.Mp);
    add_transpose(W, h.Mp, h.Mp);
    if (euclidean) return h.weigh_key_differences(W, rows, X, Y, to.keys, true);
    h.weigh_keys(W, rows, Y, h.dp, to.keys, true);
    return subtract_scaled(to.keys, rows, h.dp, m.row_sums, m.key_sums, X);
  }
  if (euclidean) {
    h.weigh_key_differences(W, rows, X, Y, to.rows, to.add_to_rows);
    return h.weigh_row_differences(W, rows, X, Y, to.keys, to.add_to_keys);
  }
  h.weigh_keys(W, rows, Y, h.dp, to.rows, to.add_to_rows);
  subtract_scaled(to.rows, rows, h.dp, m.row_sums, nullptr, X);
  h.weigh_rows(W, rows, X, h.dp, to.keys, to.add_to_keys);
  subtract_scaled(to.keys, h.M, h.dp, m.key_sums, nullptr, Y);
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
