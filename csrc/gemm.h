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

// What an operation adds to the tile at each k, here an outer product. Element (i, k) of A lies at i * rs + k * cs, row k of
// B at k * ldb. An operation of another kind (l2_attention_tiles.h) has these same three functions.
struct Product {
  const float* A;
  Index rs, cs;
  const float* B;
  Index ldb;

  static constexpr int rows(int vectors) { return kRows[vectors]; }
  INLINE_MEMBER Product from(Index row, Index column) const { return {A + row * rs, rs, cs, B + column, ldb}; }
  template <int ROWS, int VECTORS>
  INLINE_MEMBER void step(vf (&c)[ROWS][VECTORS]) {
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
};

// C (ROWS x VECTORS vectors) (+)= the sum over all k
template <int ROWS, int VECTORS, class Operation>
static __attribute__((noinline)) void add_up_tile(const Operation& given, Index depth, float* C, Index ldc, bool add) {
  Operation operation = given;
  vf c[ROWS][VECTORS];
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int j = 0; j < VECTORS; ++j) c[i][j] = (vf){};
  }
  for (Index k = 0; k < depth; ++k) operation.step(c);
  UNROLL
  for (int i = 0; i < ROWS; ++i) {
    UNROLL
    for (int j = 0; j < VECTORS; ++j) {
      float* const to = C + i * ldc + j * VL;
      store(to, add ? load(to) + c[i][j] : c[i][j]);
    }
  }
}

template <class Operation>
using AddUpTile = void (*)(const Operation&, Index, float*, Index, bool);

template <int ROWS, int VECTORS, class Operation>
INLINE AddUpTile<Operation> tile_of(Index rows) {
  if constexpr (ROWS == 0) {
    return nullptr;
  } else {
    return rows == ROWS ? add_up_tile<ROWS, VECTORS, Operation> : tile_of<ROWS - 1, VECTORS, Operation>(rows);
  }
}

template <int VECTORS, class Operation>
static void add_up_panel(const Operation& operation, Index column, Index m, Index depth, float* C, Index ldc, bool add) {
  constexpr int ROWS = Operation::rows(VECTORS);
  // as even as can be: 65 rows by 6 are 11 tiles of 6 or 5
  const Index tiles = (m + ROWS - 1) / ROWS, low = m / tiles, higher = m % tiles;
  const auto low_tile = tile_of<ROWS, VECTORS, Operation>(low);
  const auto high_tile = tile_of<ROWS, VECTORS, Operation>(low + (higher > 0));
  for (Index t = 0, i = 0; t < tiles; ++t) {
    const bool high = t < higher;
    (high ? high_tile : low_tile)(operation.from(i, column), depth, C + i * ldc + column, ldc, add);
    i += low + high;
  }
}

// C (m x `vectors` vectors) (+)= the sum over `depth` values of k
template <class Operation>
static void add_up(const Operation& operation, Index m, Index vectors, Index depth, float* C, Index ldc, bool add) {
  if (m == 0) return;
  for (Index column = 0; vectors > 0;) {
    // six vectors in panels of 3 and 3, not of 5 and 1
    const Index panels = (vectors + kMaxVectors - 1) / kMaxVectors, width = (vectors + panels - 1) / panels;
    switch (width) {
      case 1: add_up_panel<1>(operation, column, m, depth, C, ldc, add); break;
      case 2: add_up_panel<2>(operation, column, m, depth, C, ldc, add); break;
#if VITGAN_LANES == 16 || defined(__aarch64__)
      case 3: add_up_panel<3>(operation, column, m, depth, C, ldc, add); break;
      case 4: add_up_panel<4>(operation, column, m, depth, C, ldc, add); break;
      case 5: add_up_panel<5>(operation, column, m, depth, C, ldc, add); break;
#endif
    }
    column += width * VL;
    vectors -= width;
  }
}

// C (m x `vectors` vectors) (+)= A (m x depth) B (depth x vectors): element (i, k) of A at i * rs + k * cs.
static inline void multiply(Index m, Index vectors, Index depth, const float* A, Index rs, Index cs, const float* B,
                            Index ldb, float* C, Index ldc, bool add) {
  add_up(Product{A, rs, cs, B, ldb}, m, vectors, depth, C, ldc, add);
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
