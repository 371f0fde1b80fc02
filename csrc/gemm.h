// Products of small matrices of floats, in registers. Every element of C is one sum over k in its order, whatever the
// size of the tile that it is computed in: its bits depend on its row of A and its column of B alone.
#pragma once

#include "simd.h"

namespace vitgan {
namespace VITGAN_LEVEL {

// Tiles of up to kRows[vectors] rows by kMaxVectors vectors fill the registers.
#if VITGAN_LANES == 16 || defined(__aarch64__)
constexpr int kMaxVectors = 5;
constexpr int kRows[] = {0, 12, 12, 8, 6, 5};
#else
constexpr int kMaxVectors = 2;
constexpr int kRows[] = {0, 8, 6};
#endif

// C (ROWS x VECTORS vectors) (+)= A B: element (i, k) of A at i * rs + k * cs, row k of B at k * ldb.
template <int ROWS, int VECTORS>
static __attribute__((noinline)) void multiply_tile(Index depth, const float* A, Index rs, Index cs, const float* B,
                                                    Index ldb, float* C, Index ldc, bool add) {
  vf c[ROWS][VECTORS];
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int j = 0; j < VECTORS; ++j) c[i][j] = (vf){};
  }
  for (Index k = 0; k < depth; ++k) {
    vf b[VECTORS];
    UNROLL
    for (int j = 0; j < VECTORS; ++j) b[j] = load(B + j * VL);
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const vf a = splat(A[i * rs]);
      UNROLL
      for (int j = 0; j < VECTORS; ++j) c[i][j] += a * b[j];
    }
    A += cs;
    B += ldb;
  }
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int j = 0; j < VECTORS; ++j) {
      float* const to = C + i * ldc + j * VL;
      store(to, add ? load(to) + c[i][j] : c[i][j]);
    }
  }
}

typedef void (*MultiplyTile)(Index, const float*, Index, Index, const float*, Index, float*, Index, bool);

template <int ROWS, int VECTORS>
INLINE MultiplyTile tile_of(Index rows) {
  if constexpr (ROWS == 0) {
    return nullptr;
  } else {
    return rows == ROWS ? multiply_tile<ROWS, VECTORS> : tile_of<ROWS - 1, VECTORS>(rows);
  }
}

template <int VECTORS>
static void multiply_panel(Index m, Index depth, const float* A, Index rs, Index cs, const float* B, Index ldb, float* C,
                           Index ldc, bool add) {
  constexpr int ROWS = kRows[VECTORS];
  // as even as can be: 65 rows by 6 are 11 tiles of 6 or 5
  const Index tiles = (m + ROWS - 1) / ROWS, low = m / tiles, higher = m % tiles;
  const MultiplyTile low_tile = tile_of<ROWS, VECTORS>(low), high_tile = tile_of<ROWS, VECTORS>(low + (higher > 0));
  for (Index t = 0, i = 0; t < tiles; ++t) {
    const bool high = t < higher;
    (high ? high_tile : low_tile)(depth, A + i * rs, rs, cs, B, ldb, C + i * ldc, ldc, add);
    i += low + high;
  }
}

// C (m x `vectors` vectors) (+)= A (m x depth) B (depth x vectors).
static inline void multiply(Index m, Index vectors, Index depth, const float* A, Index rs, Index cs, const float* B, Index ldb,
                     float* C, Index ldc, bool add) {
  if (m == 0) return;
  while (vectors > 0) {
    // six vectors in panels of 3 and 3, not of 5 and 1
    const Index panels = (vectors + kMaxVectors - 1) / kMaxVectors, width = (vectors + panels - 1) / panels;
    switch (width) {
      case 1: multiply_panel<1>(m, depth, A, rs, cs, B, ldb, C, ldc, add); break;
      case 2: multiply_panel<2>(m, depth, A, rs, cs, B, ldb, C, ldc, add); break;
#if VITGAN_LANES == 16 || defined(__aarch64__)
      case 3: multiply_panel<3>(m, depth, A, rs, cs, B, ldb, C, ldc, add); break;
      case 4: multiply_panel<4>(m, depth, A, rs, cs, B, ldb, C, ldc, add); break;
      case 5: multiply_panel<5>(m, depth, A, rs, cs, B, ldb, C, ldc, add); break;
#endif
    }
    B += width * VL;
    C += width * VL;
    vectors -= width;
  }
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
