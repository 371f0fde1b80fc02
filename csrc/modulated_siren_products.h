// The three products of a modulated layer, for a unit of rows: in floats, and on AMX tiles where a stack is bfloat16.
#pragma once

#include "gemm.h"
#include "modulated_siren.h"
#ifdef __AMX_TILE__
#include "amx.h"
#endif

namespace vitgan {
namespace VITGAN_LEVEL {

// Memory taken piece by piece; without any, what is taken is only added up.
struct Arena {
  char* memory;
  size_t used = 0;

  template <typename T>
  T* take(Index count) {
    T* const taken = memory ? (T*)(memory + used) : nullptr;
    used += ((size_t)count * sizeof(T) + 63) / 64 * 64;
    return taken;
  }
};

// A row of `width` numbers as floats, and zeros up to the next whole vector.
INLINE void read_row(const void* from, bool as_bf16, Index at, Index width, float* to) {
  Index j = 0;
  if (as_bf16) {
    const bf16* const x = (const bf16*)from + at;
    for (; j + VL <= width; j += VL) store(to + j, from_bf16(x + j));
    for (; j < width; ++j) to[j] = from_bf16(x[j]);
  } else {
    const float* const x = (const float*)from + at;
    for (; j + VL <= width; j += VL) store(to + j, load(x + j));
    for (; j < width; ++j) to[j] = x[j];
  }
  for (; j < up(width); ++j) to[j] = 0;
}
INLINE void write_row(void* to, bool as_bf16, Index at, Index width, const float* from) {
  Index j = 0;
  if (as_bf16) {
    bf16* const x = (bf16*)to + at;
    for (; j + VL <= width; j += VL) to_bf16(x + j, load(from + j));
    if (j == width) return;
    bf16 rest[VL];
    to_bf16(rest, load(from + j));
    for (Index i = 0; j < width; ++i, ++j) x[j] = rest[i];
  } else {
    float* const x = (float*)to + at;
    for (; j + VL <= width; j += VL) store(x + j, load(from + j));
    for (; j < width; ++j) x[j] = from[j];
  }
}

// --- Floats. A packed matrix lies in panels of kPanel vectors, a row of a panel after the other.

constexpr Index kPanel = VL == 16 ? 4 : 2;
constexpr Index kDepth = 128;  // so many rows of a panel stay in the first-level cache

static void multiply_packed(Index m, const float* A, Index lda, const float* packed, Index depth, Index vectors, float* C,
                            Index ldc) {
  for (Index v = 0; v < vectors; v += kPanel) {
    const Index width = smaller(vectors - v, kPanel);
    const float* const panel = packed + v * VL * depth;
    for (Index k = 0; k < depth; k += kDepth) {
      multiply(m, width, smaller(depth - k, kDepth), A + k, lda, 1, panel + k * width * VL, width * VL, C + v * VL, ldc,
               k > 0);
    }
  }
}
// W (O, I) with rows of ld floats, as W^T (I, O)
static void pack_transpose(const float* W, Index ld, Index O, Index I, float* packed) {
  for (Index o = 0; o < up(O); o += kPanel * VL) {
    const Index width = smaller(up(O) - o, kPanel * VL), rows = smaller(O - o, width);
    float* const panel = packed + o * I;
    if (rows < width) fill(panel, 0, I * width);
    transpose(W + o * ld, rows, I, ld, panel, width);
  }
}
static void pack_as_it_is(const float* W, Index ld, Index O, Index I, float* packed) {
  for (Index i = 0; i < up(I); i += kPanel * VL) {
    const Index width = smaller(up(I) - i, kPanel * VL);
    float* const panel = packed + i * O;
    for (Index o = 0; o < O; ++o) read_row(W, false, o * ld + i, smaller(I - i, width), panel + o * width);
  }
}

// C = A W^T for up to kNarrow rows of W, zeros after them: most of a vector of outputs would be empty, so vectors run
// along the depth, kNarrow sums in each of a few rows at once. Rows of A are whole vectors, with zeros at the end.
constexpr Index kNarrow = 4;

static void multiply_narrow(Index m, const float* A, Index lda, const float* W, Index ldw, Index depth, float* C, Index ldc) {
  constexpr Index kRowsAtOnce = VL / kNarrow;
  for (Index i = 0; i < m; i += kRowsAtOnce) {
    vf sums[VL];
    UNROLL
    for (int s = 0; s < VL; ++s) sums[s] = (vf){};
    for (Index k = 0; k < depth; k += VL) {
      vf w[kNarrow];
      UNROLL
      for (int o = 0; o < kNarrow; ++o) w[o] = load(W + o * ldw + k);
      UNROLL
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const vf a = load(A + smaller(i + r, m - 1) * lda + k);
        UNROLL
        for (int o = 0; o < kNarrow; ++o) sums[r * kNarrow + o] += a * w[o];
      }
    }
    fold<1>(sums);
    float lanes[VL];
    store(lanes, sums[0]);
    for (Index r = 0; r < kRowsAtOnce && i + r < m; ++r) {
      float row[VL] = {};
      __builtin_memcpy(row, lanes + r * kNarrow, kNarrow * sizeof(float));
      store(C + (i + r) * ldc, load(row));
    }
  }
}

struct Floats {
  typedef float Operand;
  static constexpr Index kRows = 96;  // of a unit, at most: a multiple of the rows of all tiles
  static Index stride(Index width) { return wide(width); }
  static Index operand_size(Index width) { return kRows * wide(width); }

  Floats(Arena&, Index) {}

  __attribute__((always_inline)) inline void put(float* row, Index, vf x) const { store(row, x); }
  void end_row(float*, Index) const {}
  void end_rows(float*, Index, Index) const {}

  // C = U W^T
  void forward(Index rows, const float* U, Index I, const void* packed, Index O, float* C) const {
    product(rows, U, I, packed, O, C);
  }
  static void product(Index rows, const float* U, Index I, const void* packed, Index O, float* C) {
    if (O <= kNarrow) multiply_narrow(rows, U, wide(I), (const float*)packed, wide(I), up(I), C, wide(O));
    else multiply_packed(rows, U, wide(I), (const float*)packed, I, up(O) / VL, C, wide(O));
  }
  // G = D W
  void input_gradient(Index rows, const float* D, Index O, const void* packed, Index I, float* G) const {
    multiply_packed(rows, D, wide(O), (const float*)packed, O, up(I) / VL, G, wide(I));
  }
  // sum (+)= D^T U; rows of D up to a multiple of 32 may be written to
  void weight_gradient(Index rows, float* D, Index O, const float* U, Index I, float* sum, bool add) const {
    multiply(O, up(I) / VL, rows, D, 1, wide(O), U, wide(I), sum, wide(I), add);
  }

  // `spare` holds wide(O) wide(I) floats.
  static Index packed_size(Index O, Index I, bool backward) {
    return O <= kNarrow ? kNarrow * wide(I) : backward ? O * up(I) : up(O) * I;
  }
  static void pack(const SirenLayer& y, bool as_bf16, bool backward, void* spare, float* to) {
    const float* W = (const float*)y.weight;
    Index ld = y.inputs;
    if (as_bf16) {
      ld = wide(y.inputs);
      for (Index o = 0; o < y.outputs; ++o) read_row(y.weight, true, o * y.inputs, y.inputs, (float*)spare + o * ld);
      W = (const float*)spare;
    }
    if (backward || y.outputs > kNarrow) {
      (backward ? pack_as_it_is : pack_transpose)(W, ld, y.outputs, y.inputs, to);
      return;
    }
    fill(to, 0, kNarrow * wide(y.inputs));
    for (Index o = 0; o < y.outputs; ++o) read_row(W, false, o * ld, y.inputs, to + o * wide(y.inputs));
  }
};

#ifdef __AMX_TILE__

// An operand is the sum of two bfloat16, the second `operand_size / 2` further, so that the argument of a sine keeps 16
// bits; gradients are one.
struct Tiles {
  typedef bf16 Operand;
  static constexpr Index kRows = 128;
  static Index stride(Index width) { return up32(width); }
  static Index operand_size(Index width) { return 2 * kRows * up32(width); }

  Tiles(Arena& arena, Index widest)
      : rounded_(arena.take<bf16>(kRows * up32(widest))),
        transposed_(arena.take<bf16>(kRows * up32(widest))),
        pairs_(arena.take<bf16>(kRows * up32(widest))) {}

  __attribute__((always_inline)) inline void put(bf16* row, Index width, vf x) const {
    narrow(row, x);
    narrow(row + operand_size(width) / 2, x - from_bf16(row));
  }
  void end_row(bf16* row, Index width) const {
    for (Index j = up(width); j < up32(width); j += VL) put(row + j, width, (vf){});
  }
  void end_rows(bf16* U, Index rows, Index width) const {
    for (Index at = rows * up32(width); at < up32(rows) * up32(width); at += VL) put(U + at, width, (vf){});
  }

  void forward(Index rows, const bf16* U, Index I, const void* packed, Index O, float* C) const {
    const Index m = up(rows) / 16, n = up(O) / 16, k = up32(I) / 32;
    multiply_bf16(m, n, k, U, up32(I), (const bf16*)packed, C, wide(O), false);
    multiply_bf16(m, n, k, U + operand_size(I) / 2, up32(I), (const bf16*)packed, C, wide(O), true);
  }
  void input_gradient(Index rows, const float* D, Index O, const void* packed, Index I, float* G) const {
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < up(O); j += VL) narrow(rounded_ + i * up32(O) + j, load(D + i * wide(O) + j));
      for (Index j = up(O); j < up32(O); j += VL) narrow(rounded_ + i * up32(O) + j, (vf){});
    }
    multiply_bf16(up(rows) / 16, up(I) / 16, up32(O) / 32, rounded_, up32(O), (const bf16*)packed, G, wide(I), false);
  }
  void weight_gradient(Index rows, float* D, Index O, const bf16* U, Index I, float* sum, bool add) const {
    fill(D + rows * wide(O), 0, (up32(rows) - rows) * wide(O));
    round_transpose(D, wide(O), up(O) / 16, up32(rows) / 16, transposed_, up32(rows));
    pack_rows(U, up32(I), up(I) / 16, up32(rows) / 32, pairs_);
    multiply_bf16(up(O) / 16, up(I) / 16, up32(rows) / 32, transposed_, up32(rows), pairs_, sum, wide(I), add);
  }

  static Index packed_size(Index O, Index I, bool backward) { return backward ? up32(O) * up(I) : up(O) * up32(I); }
  static void pack(const SirenLayer& y, bool, bool backward, void* spare, bf16* to) {
    const Index O = y.outputs, I = y.inputs, ld = up32(I);
    bf16* const rows = (bf16*)spare;
    for (Index at = 0; at < up32(O) * ld; at += VL) narrow(rows + at, (vf){});
    for (Index o = 0; o < O; ++o) __builtin_memcpy(rows + o * ld, (const bf16*)y.weight + o * I, (size_t)I * sizeof(bf16));
    if (backward) pack_rows(rows, ld, up(I) / 16, up32(O) / 32, to);
    else pack_columns(rows, ld, up(O) / 16, ld / 32, to);
  }

 private:
  TilesInUse in_use_;
  bf16 *rounded_, *transposed_, *pairs_;
};

#endif

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
