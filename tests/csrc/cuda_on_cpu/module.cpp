// The extension module with the spectral norm alone, whose CUDA source is compiled for the CPU.
#include <pybind11/pybind11.h>

#include "binding.h"

PYBIND11_MODULE(_native, module) {
  vitgan::bind_spectral_norm(module.ptr());
  module.def("build_info", [] {
    pybind11::dict info;
    for (const char* part : {"compiler", "standard", "flags"}) info[part] = "";
    info["cuda"] = VITGAN_WITH_CUDA;
    return info;
  });
}
