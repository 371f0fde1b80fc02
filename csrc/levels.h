// Which instructions the CPU kernels use. A file *.simd.cpp is compiled once for each level that the compiler knows, in a
// namespace named after it (VITGAN_LEVEL), and the best level that this machine has is taken at run time:
//   generic   what every machine of the architecture has (SSE2, NEON), by the compiler's own vectors
//   avx2      AVX2 and FMA
//   avx512    AVX-512 F, BW, DQ and VL
//   amx       AVX-512 with AMX tiles for products of bfloat16 matrices
// VITGAN_CPU_LEVEL in the environment takes a lower one.
//
// Such files include no header of the C++ library: an inline function compiled for AVX-512 here could be the one copy
// that the linker keeps for all.
#pragma once

namespace vitgan {

enum class Level { generic, avx2, avx512, amx };

// Throws std::runtime_error where VITGAN_CPU_LEVEL names a level that there is not, or not here.
Level cpu_level();
const char* name_of(Level level);
// The levels in this build, lowest first, parted by spaces.
const char* built_levels();

}  // namespace vitgan

#ifdef VITGAN_WITH_AVX2
#define VITGAN_AVX2 avx2
#else
#define VITGAN_AVX2 generic
#endif
#ifdef VITGAN_WITH_AVX512
#define VITGAN_AVX512 avx512
#else
#define VITGAN_AVX512 VITGAN_AVX2
#endif
#ifdef VITGAN_WITH_AMX
#define VITGAN_AMX amx
#else
#define VITGAN_AMX VITGAN_AVX512
#endif

// Declares `const Type name`, which every level defines, and name_for(level). To be used in namespace vitgan.
#define VITGAN_PER_LEVEL(Type, name)                      \
  namespace generic { extern const Type name; }           \
  namespace VITGAN_AVX2 { extern const Type name; }       \
  namespace VITGAN_AVX512 { extern const Type name; }     \
  namespace VITGAN_AMX { extern const Type name; }        \
  inline const Type& name##_for(Level level) {            \
    switch (level) {                                      \
      case Level::amx: return VITGAN_AMX::name;           \
      case Level::avx512: return VITGAN_AVX512::name;     \
      case Level::avx2: return VITGAN_AVX2::name;         \
      default: return generic::name;                      \
    }                                                     \
  }
