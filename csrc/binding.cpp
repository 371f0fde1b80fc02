// The extension module vitgan_kernels._native: raw addresses and sizes in, plain numbers out. No PyTorch header, so
// one build serves every PyTorch; vitgan_kernels/spectral_norm/native.py turns tensors into addresses.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "power_iteration.h"

namespace py = pybind11;

namespace {

struct Span {
  const char* name;
  std::uintptr_t begin, end;
};

template <typename T>
Span checked_span(const char* name, std::uintptr_t address, std::int64_t count) {
  if (address == 0) throw std::invalid_argument(std::string(name) + " is a null address; give the tensor's data_ptr()");
  if (address % alignof(T) != 0) {
    throw std::invalid_argument(std::string(name) + " is at address " + std::to_string(address) +
                                ", which is not a multiple of " + std::to_string(alignof(T)) + "; clone the tensor");
  }
  return {name, address, address + static_cast<std::uintptr_t>(count) * sizeof(T)};
}

void check_disjoint(const Span& a, const Span& b) {
  if (a.begin < b.end && b.begin < a.end) {
    throw std::invalid_argument(std::string(a.name) + " and " + b.name + " share memory; clone one of them");
  }
}

void check_at_least(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least) {
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; it must be at least " +
                                std::to_string(least));
  }
}

template <typename T>
T power_iteration(std::uintptr_t weight, std::int64_t rows, std::int64_t cols, std::uintptr_t u, std::uintptr_t v,
                  std::int64_t n_iterations, double eps) {
  check_at_least("rows", rows, 1);
  check_at_least("cols", cols, 1);
  check_at_least("n_iterations", n_iterations, 0);
  if (!(eps >= 0.0)) throw std::invalid_argument("eps is " + std::to_string(eps) + "; it must be zero or more");
  const Span weight_span = checked_span<T>("weight", weight, rows * cols);
  const Span u_span = checked_span<T>("u", u, rows);
  const Span v_span = checked_span<T>("v", v, cols);
  check_disjoint(weight_span, u_span);
  check_disjoint(weight_span, v_span);
  check_disjoint(u_span, v_span);

  const py::gil_scoped_release release;
  return vitgan::power_iteration<T>(reinterpret_cast<const T*>(weight), rows, cols, reinterpret_cast<T*>(u),
                                    reinterpret_cast<T*>(v), n_iterations, eps);
}

template <typename T>
void bind_power_iteration(py::module_& module, const char* name) {
  module.def(name, &power_iteration<T>, py::arg("weight_ptr"), py::arg("rows"), py::arg("cols"), py::arg("u_ptr"),
             py::arg("v_ptr"), py::arg("n_iterations"), py::arg("eps"),
             "n_iterations times, in place: v <- normalise(W^T u), u <- normalise(W v). Returns u^T W v.");
}

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
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Compiled kernels of vitgan_kernels.";
  bind_power_iteration<float>(module, "power_iteration_float32");
  bind_power_iteration<double>(module, "power_iteration_float64");
  module.def("build_info", &build_info, "The compiler, language standard and flags that this module was built with.");
}
