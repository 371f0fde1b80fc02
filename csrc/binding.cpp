// The extension module vitgan_kernels._native: every operator's functions, and what the build is.
#include "binding.h"

#include <pybind11/pybind11.h>

#include <string>

#include "levels.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["standard"] = "c++" + std::to_string(__cplusplus / 100 % 100);
  info["flags"] = VITGAN_CXX_FLAGS;
  info["levels"] = vitgan::built_levels();
#ifdef VITGAN_WITH_CUDA
  info["cuda"] = VITGAN_WITH_CUDA;
#else
  info["cuda"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of vitgan_kernels.";
  vitgan::bind_spectral_norm(module.ptr());
  vitgan::bind_modulated_siren(module.ptr());
  vitgan::bind_l2_attention(module.ptr());
  module.def("build_info", &build_info,
             "The compiler, language standard and flags of this build, the levels of its CPU kernels, and what for CUDA.");
  module.def("cpu_level", [] { return vitgan::name_of(vitgan::cpu_level()); },
             "The level of the CPU kernels that runs here: the best one, or what VITGAN_CPU_LEVEL names.");
}
