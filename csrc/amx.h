// Products of bfloat16 matrices on AMX tiles, summed in float. Only where the compiler has AMX (VITGAN_LEVEL amx).
#pragma once

#include <immintrin.h>

#include "simd.h"

namespace vitgan {
namespace VITGAN_LEVEL {

// Not on the stack: GCC 12 takes the instruction that reads it to read its first bytes alone, and drops the other stores.
struct alignas(64) TileConfig {
  unsigned char palette, start_row, reserved[14];
  unsigned short bytes_per_row[16];
  unsigned char rows[16];
};
static const TileConfig kEightTiles = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Configures the eight tiles of this core as 16 rows of 64 bytes for as long as it lives.
struct TilesInUse {
  TilesInUse() { _tile_loadconfig(&kEightTiles); }
  ~TilesInUse() { _tile_release(); }
};

INLINE Index up32(Index n) { return (n + 31) / 32 * 32; }
INLINE void narrow(bf16* p, vf x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }

// C (16 m16 x 16 n16 floats) (+)= A B. A: rows of lda bfloat16, 32 k32 of them used. B as pack_rows or pack_columns
// leave it: tiles [column][k] of 16 rows, each of 16 pairs of consecutive k.
static inline void multiply_bf16(Index m16, Index n16, Index k32, const bf16* A, Index lda, const bf16* B, float* C,
                                 Index ldc, bool add) {
  const Index a_stride = lda * 2, c_stride = ldc * 4;
  for (Index j = 0; j < n16; j += 2) {
    for (Index i = 0; i < m16; i += 2) {
      const bool second_row = i + 1 < m16, second_column = j + 1 < n16;
      float *const c0 = C + i * 16 * ldc + j * 16, *const c1 = c0 + 16 * ldc;
      const bf16 *const a0 = A + i * 16 * lda, *const a1 = a0 + 16 * lda, *const b0 = B + j * k32 * 512,
                 *const b1 = b0 + k32 * 512;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      if (add) {
        _tile_loadd(0, c0, c_stride);
        if (second_column) _tile_loadd(1, c0 + 16, c_stride);
        if (second_row) _tile_loadd(2, c1, c_stride);
        if (second_row && second_column) _tile_loadd(3, c1 + 16, c_stride);
      }
      for (Index k = 0; k < k32; ++k) {
        _tile_loadd(4, a0 + k * 32, a_stride);
        _tile_loadd(6, b0 + k * 512, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (second_row) {
          _tile_loadd(5, a1 + k * 32, a_stride);
          _tile_dpbf16ps(2, 5, 6);
        }
        if (second_column) {
          _tile_loadd(7, b1 + k * 512, 64);
          _tile_dpbf16ps(1, 4, 7);
          if (second_row) _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, c0, c_stride);
      if (second_column) _tile_stored(1, c0 + 16, c_stride);
      if (second_row) _tile_stored(2, c1, c_stride);
      if (second_row && second_column) _tile_stored(3, c1 + 16, c_stride);
    }
  }
}

// B = X, of 32 k32 rows and 16 n16 columns
static inline void pack_rows(const bf16* X, Index ldx, Index n16, Index k32, bf16* B) {
  for (Index j = 0; j < n16; ++j) {
    for (Index k = 0; k < k32; ++k, B += 512) {
      for (int pair = 0; pair < 16; ++pair) {
        const bf16* const x = X + (k * 32 + 2 * pair) * ldx + j * 16;
        const vu low = __builtin_convertvector(*(const vh_unaligned*)x, vu);
        const vu high = __builtin_convertvector(*(const vh_unaligned*)(x + ldx), vu);
        store((float*)B + pair * 16, (vf)(low | (high << 16)));
      }
    }
  }
}
// B = the transpose of X, of 16 n16 rows and 32 k32 columns
static inline void pack_columns(const bf16* X, Index ldx, Index n16, Index k32, bf16* B) {
  for (Index j = 0; j < n16; ++j) {
    for (Index k = 0; k < k32; ++k, B += 512) {
      vf r[VL];
      load_square((const float*)(X + j * 16 * ldx + k * 32), ldx / 2, r);
      exchange<1>(r);
      store_square((float*)B, 16, r);
    }
  }
}
// A = the transpose of X, rounded: X of 16 k16 rows and 16 m16 columns of floats
static inline void round_transpose(const float* X, Index ldx, Index m16, Index k16, bf16* A, Index lda) {
  for (Index i = 0; i < m16; ++i) {
    for (Index k = 0; k < k16; ++k) {
      vf r[VL];
      load_square(X + k * 16 * ldx + i * 16, ldx, r);
      exchange<1>(r);
      UNROLL
      for (int a = 0; a < VL; ++a) narrow(A + (i * 16 + a) * lda + k * 16, r[a]);
    }
  }
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
