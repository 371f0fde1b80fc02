// The sums over tiles that a distance needs beside products (gemm.h): from differences, which stay exact where tokens lie
// close together, and so are the gradients made of them.
#pragma once

#include "gemm.h"

namespace vitgan {
namespace VITGAN_LEVEL {

// += (a_ik - b_kj)^2: the squared distance of row i of A and column j of B.
struct SquaredDistance {
  const float* A;
  Index lda;
  const float* B;
  Index ldb;

  static constexpr int rows(int vectors) { return kRows[vectors]; }
  INLINE_MEMBER SquaredDistance from(Index row, Index column) const { return {A + row * lda, lda, B + column, ldb}; }
  template <int ROWS, int VECTORS>
  INLINE_MEMBER void step(vf (&c)[ROWS][VECTORS]) {
    vf b[VECTORS];
    UNROLL
    for (int j = 0; j < VECTORS; ++j) b[j] = load(B + j * VL);
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const vf a = splat(A[i * lda]);
      UNROLL
      for (int j = 0; j < VECTORS; ++j) {
        const vf difference = a - b[j];
        c[i][j] += difference * difference;
      }
    }
    ++A;
    B += ldb;
  }
};

// += (a_ik - b_kj) (x_ik - y_kj): half the tangent of the squared distance along X of A and Y of B.
struct DistanceTangent {
  const float *A, *X;
  Index lda, ldx;
  const float *B, *Y;
  Index ldb;

  static constexpr int rows(int vectors) { return kRows[vectors] / 2 + (kRows[vectors] < 2); }
  INLINE_MEMBER DistanceTangent from(Index row, Index column) const {
    return {A + row * lda, X + row * ldx, lda, ldx, B + column, Y + column, ldb};
  }
  template <int ROWS, int VECTORS>
  INLINE_MEMBER void step(vf (&c)[ROWS][VECTORS]) {
    vf b[VECTORS], y[VECTORS];
    UNROLL
    for (int j = 0; j < VECTORS; ++j) b[j] = load(B + j * VL), y[j] = load(Y + j * VL);
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const vf a = splat(A[i * lda]), x = splat(X[i * ldx]);
      UNROLL
      for (int j = 0; j < VECTORS; ++j) c[i][j] += (a - b[j]) * (x - y[j]);
    }
    ++A;
    ++X;
    B += ldb;
    Y += ldb;
  }
};

// += w_ik (y_k - x_i), rows of features: weight (i, k) lies at i * rs + k * cs.
struct WeightedDifference {
  const float* W;
  Index rs, cs;
  const float* X;
  Index ldx;
  const float* Y;
  Index ldy;

  static constexpr int rows(int vectors) { return kRows[vectors]; }
  INLINE_MEMBER WeightedDifference from(Index row, Index column) const {
    return {W + row * rs, rs, cs, X + row * ldx + column, ldx, Y + column, ldy};
  }
  template <int ROWS, int VECTORS>
  INLINE_MEMBER void step(vf (&c)[ROWS][VECTORS]) {
    vf y[VECTORS];
    UNROLL
    for (int j = 0; j < VECTORS; ++j) y[j] = load(Y + j * VL);
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const vf w = splat(W[i * rs]);
      UNROLL
      for (int j = 0; j < VECTORS; ++j) c[i][j] += w * (y[j] - load(X + i * ldx + j * VL));
    }
    W += cs;
    Y += ldy;
  }
};

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
