// What the machine and the build have, and what the environment asks for.
#include "levels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#ifdef VITGAN_WITH_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vitgan {
namespace {

constexpr const char* kNames[] = {"generic", "avx2", "avx512", "amx"};
constexpr const char* kVariable = "VITGAN_CPU_LEVEL";

#ifdef VITGAN_WITH_AMX
bool have_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = d >> 24 & 1, bf16_tiles = d >> 22 & 1;
  if (!tiles || !bf16_tiles) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;  // conversions to bfloat16
  // the kernel saves a process's tiles only where it was asked to
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

Level best() {
#if defined(VITGAN_WITH_AVX2) || defined(VITGAN_WITH_AVX512) || defined(VITGAN_WITH_AMX)
  __builtin_cpu_init();
#endif
#ifdef VITGAN_WITH_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
#ifdef VITGAN_WITH_AMX
    if (have_amx()) return Level::amx;
#endif
    return Level::avx512;
  }
#endif
#ifdef VITGAN_WITH_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::avx2;
#endif
  return Level::generic;
}

Level wanted(Level best) {
  const char* const text = std::getenv(kVariable);
  if (!text || !*text) return best;
  for (int i = 0; i <= static_cast<int>(best); ++i) {
    if (std::string(text) == kNames[i]) return static_cast<Level>(i);
  }
  std::string message = std::string(kVariable) + " is " + text + ", and this build has, on this machine, " + kNames[0];
  for (int i = 1; i <= static_cast<int>(best); ++i) message += std::string(", ") + kNames[i];
  throw std::runtime_error(message + ": name one of them, or unset it");
}

}  // namespace

Level cpu_level() {
  static const Level level = wanted(best());
  return level;
}

const char* name_of(Level level) { return kNames[static_cast<int>(level)]; }

const char* built_levels() {
  return "generic"
#ifdef VITGAN_WITH_AVX2
         " avx2"
#endif
#ifdef VITGAN_WITH_AVX512
         " avx512"
#endif
#ifdef VITGAN_WITH_AMX
         " amx"
#endif
      ;
}

}  // namespace vitgan
