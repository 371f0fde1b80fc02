// Spectral normalisation in the extension module: vitgan_kernels/spectral_norm/native.py turns tensors into addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "binding.h"
#include "spectral_norm.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Index = std::int64_t;

// As Python gives them: rows, cols, transposed, then the addresses of weight, u, v, copy of u, copy of v, scaled.
using MatrixRow = std::tuple<Index, Index, bool, Address, Address, Address, Address, Address, Address>;
// rows, cols, transposed, then the addresses of weight, u, v, gradient of scaled, gradient of weight.
using GradientRow = std::tuple<Index, Index, bool, Address, Address, Address, Address, Address>;

// What an error calls an argument. The text is made only where there is one.
struct Name {
  const char* list;
  std::size_t index;
  bool listed = true;

  Name(const char* name) : list(name), index(0), listed(false) {}
  Name(const char* name, std::size_t i) : list(name), index(i) {}
  std::string text() const { return listed ? std::string(list) + "[" + std::to_string(index) + "]" : list; }
};

// What a call reads and writes, held against each other before anything is touched.
class Memory {
 public:
  // The address as a pointer to `count` elements of so many bytes each.
  const void* reads(const Name& name, Address address, Index count, std::size_t bytes) {
    return span(name, address, count, bytes, false);
  }
  void* writes(const Name& name, Address address, Index count, std::size_t bytes) {
    return span(name, address, count, bytes, true);
  }

  // Only what is read may share memory, and only with what is read.
  void check() {
    std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    const Span* furthest = nullptr;  // of the spans before this one, the one that ends last, and that of the written
    const Span* written = nullptr;
    for (const Span& span : spans_) {
      const Span* const other = span.written ? furthest : written;
      if (other && other->end > span.begin) {
        throw std::invalid_argument(other->name.text() + " and " + span.name.text() +
                                    " share memory; clone one of them");
      }
      if (!furthest || span.end > furthest->end) furthest = &span;
      if (span.written && (!written || span.end > written->end)) written = &span;
    }
  }

 private:
  struct Span {
    Name name;
    Address begin, end;
    bool written;
  };

  void* span(const Name& name, Address address, Index count, std::size_t bytes, bool written) {
    if (address == 0) throw std::invalid_argument(name.text() + " is a null address; give the tensor's data_ptr()");
    if (address % bytes != 0) {
      throw std::invalid_argument(name.text() + " is at address " + std::to_string(address) +
                                  ", which is not a multiple of " + std::to_string(bytes) + "; clone the tensor");
    }
    spans_.push_back({name, address, address + static_cast<Address>(count) * bytes, written});
    return reinterpret_cast<void*>(address);
  }

  std::vector<Span> spans_;
};

void check_at_least(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least) {
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; it must be at least " +
                                std::to_string(least));
  }
}

void check_numbers(Index n_iterations, double eps) {
  check_at_least("n_iterations", n_iterations, 0);
  if (!(eps >= 0.0)) throw std::invalid_argument("eps is " + std::to_string(eps) + "; it must be zero or more");
}

void check_sizes(std::size_t i, Index rows, Index cols) {
  if (rows < 1 || cols < 1) {
    throw std::invalid_argument(Name("weights", i).text() + " has " + std::to_string(rows) + " rows and " +
                                std::to_string(cols) + " columns; at least one of each is needed");
  }
}

// `element` is the size of all numbers but those of `scaled`, which has its own.
std::vector<vitgan::Matrix> matrices_of(const std::vector<MatrixRow>& table, std::size_t element,
                                        std::size_t scaled_element, bool moves, Memory& memory) {
  std::vector<vitgan::Matrix> matrices;
  matrices.reserve(table.size());
  for (std::size_t i = 0; i < table.size(); ++i) {
    const auto& [rows, cols, transposed, weight, u, v, u_copy, v_copy, scaled] = table[i];
    check_sizes(i, rows, cols);
    const Index u_size = transposed ? cols : rows, v_size = transposed ? rows : cols;
    const auto vector = [&](const char* name, Address address, Index size) {
      return moves ? memory.writes({name, i}, address, size, element)
                   : const_cast<void*>(memory.reads({name, i}, address, size, element));
    };
    const auto copy = [&](const char* name, Address address, Address original, void* same, Index size) {
      return address == original ? same : memory.writes({name, i}, address, size, element);
    };
    void* const u_ptr = vector("u", u, u_size);
    void* const v_ptr = vector("v", v, v_size);
    void* const u_copy_ptr = copy("copies of u", u_copy, u, u_ptr, u_size);
    void* const v_copy_ptr = copy("copies of v", v_copy, v, v_ptr, v_size);
    vitgan::Matrix matrix{};
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.transposed = transposed;
    matrix.weight = memory.reads({"weights", i}, weight, rows * cols, element);
    matrix.left = transposed ? v_ptr : u_ptr;
    matrix.right = transposed ? u_ptr : v_ptr;
    matrix.left_copy = transposed ? v_copy_ptr : u_copy_ptr;
    matrix.right_copy = transposed ? u_copy_ptr : v_copy_ptr;
    matrix.scaled = memory.writes({"scaled", i}, scaled, rows * cols, scaled_element);
    matrices.push_back(matrix);
  }
  return matrices;
}

std::vector<vitgan::Gradient> gradients_of(const std::vector<GradientRow>& table, std::size_t element,
                                           std::size_t grad_element, Memory& memory) {
  std::vector<vitgan::Gradient> matrices;
  matrices.reserve(table.size());
  for (std::size_t i = 0; i < table.size(); ++i) {
    const auto& [rows, cols, transposed, weight, u, v, grad_scaled, grad_weight] = table[i];
    check_sizes(i, rows, cols);
    vitgan::Gradient matrix{};
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.weight = memory.reads({"weights", i}, weight, rows * cols, element);
    matrix.left = memory.reads({transposed ? "v" : "u", i}, transposed ? v : u, rows, element);
    matrix.right = memory.reads({transposed ? "u" : "v", i}, transposed ? u : v, cols, element);
    matrix.grad_scaled = memory.reads({"gradients of scaled", i}, grad_scaled, rows * cols, grad_element);
    matrix.grad_weight = memory.writes({"gradients of weights", i}, grad_weight, rows * cols, element);
    matrices.push_back(matrix);
  }
  return matrices;
}

// One number a matrix; address zero is allowed where there need be none, and stays null.
template <typename T>
const T* numbers(const char* name, Address address, std::size_t count, Memory& memory) {
  if (address == 0) return nullptr;
  return static_cast<const T*>(memory.reads(name, address, static_cast<Index>(count), sizeof(T)));
}

template <typename T>
void forward(const std::vector<MatrixRow>& table, Address goals, Address sigma, Index n_iterations, double eps,
             int threads) {
  check_numbers(n_iterations, eps);
  Memory memory;
  const auto matrices = matrices_of(table, sizeof(T), sizeof(T), n_iterations > 0, memory);
  const T* const goals_ptr = numbers<T>("sigma_init", goals, table.size(), memory);
  T* const sigma_ptr = static_cast<T*>(memory.writes("sigma", sigma, static_cast<Index>(table.size()), sizeof(T)));
  memory.check();
  const py::gil_scoped_release release;
  vitgan::spectral_norm<T>(matrices, goals_ptr, sigma_ptr, n_iterations, eps, threads);
}

template <typename T>
void backward(const std::vector<GradientRow>& table, Address goals, Address sigma, Address grad_sigma, int threads) {
  Memory memory;
  const auto matrices = gradients_of(table, sizeof(T), sizeof(T), memory);
  const T* const goals_ptr = numbers<T>("sigma_init", goals, table.size(), memory);
  const void* const sigma_ptr = memory.reads("sigma", sigma, static_cast<Index>(table.size()), sizeof(T));
  const T* const grad_ptr = numbers<T>("gradient of sigma", grad_sigma, table.size(), memory);
  memory.check();
  const py::gil_scoped_release release;
  vitgan::spectral_norm_backward<T>(matrices, goals_ptr, static_cast<const T*>(sigma_ptr), grad_ptr, threads);
}

template <typename T>
void bind_cpu(py::module_& module, const std::string& dtype) {
  module.def(("spectral_norm_" + dtype).c_str(), &forward<T>, py::arg("matrices"), py::arg("sigma_init"),
             py::arg("sigma"), py::arg("n_iterations"), py::arg("eps"), py::arg("threads"),
             "Power iteration in place, sigma, and the scaled weights, of all matrices.");
  module.def(("spectral_norm_backward_" + dtype).c_str(), &backward<T>, py::arg("matrices"), py::arg("sigma_init"),
             py::arg("sigma"), py::arg("grad_sigma"), py::arg("threads"), "The gradients of all weights.");
}

#ifdef VITGAN_WITH_CUDA

struct DtypeAndSize {
  vitgan::cuda::Dtype dtype;
  std::size_t bytes;
};

DtypeAndSize dtype_named(const std::string& name) {
  if (name == "float32") return {vitgan::cuda::Dtype::float32, 4};
  if (name == "bfloat16") return {vitgan::cuda::Dtype::bfloat16, 2};
  if (name == "float16") return {vitgan::cuda::Dtype::float16, 2};
  throw std::invalid_argument("dtype is " + name + "; float32, bfloat16 or float16 is needed");
}

template <typename M>
vitgan::cuda::Launch checked_launch(const std::vector<M>& matrices, int device, Address stream, Address workspace,
                                    Index bytes, bool cooperative, Memory& memory) {
  const auto needed = static_cast<Index>(vitgan::cuda::workspace_bytes(matrices));
  check_at_least("the size of the workspace in bytes", bytes, needed);
  void* const place = memory.writes("workspace", workspace, bytes / 8, 8);
  memory.check();
  return {device, reinterpret_cast<void*>(stream), place, cooperative};
}

// M is Matrix or Gradient; sizes holds (rows, cols) of each.
template <typename M>
Index workspace_for(const std::vector<std::pair<Index, Index>>& sizes) {
  std::vector<M> matrices(sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    std::tie(matrices[i].rows, matrices[i].cols) = sizes[i];
    check_sizes(i, matrices[i].rows, matrices[i].cols);
  }
  return static_cast<Index>(vitgan::cuda::workspace_bytes(matrices));
}

void forward_cuda(const std::vector<MatrixRow>& table, const std::string& scaled_dtype, Address goals, Address sigma,
                  Index n_iterations, double eps, int device, Address stream, Address workspace, Index workspace_bytes,
                  bool cooperative) {
  check_numbers(n_iterations, eps);
  const DtypeAndSize scaled = dtype_named(scaled_dtype);
  Memory memory;
  const auto matrices = matrices_of(table, sizeof(float), scaled.bytes, n_iterations > 0, memory);
  const float* const goals_ptr = numbers<float>("sigma_init", goals, table.size(), memory);
  void* const sigma_ptr = memory.writes("sigma", sigma, static_cast<Index>(table.size()), sizeof(float));
  const auto launch = checked_launch(matrices, device, stream, workspace, workspace_bytes, cooperative, memory);
  const py::gil_scoped_release release;
  vitgan::cuda::spectral_norm(matrices, scaled.dtype, goals_ptr, static_cast<float*>(sigma_ptr), n_iterations, eps,
                              launch);
}

void backward_cuda(const std::vector<GradientRow>& table, const std::string& grad_dtype, Address goals, Address sigma,
                   Address grad_sigma, int device, Address stream, Address workspace, Index workspace_bytes,
                   bool cooperative) {
  const DtypeAndSize grad = dtype_named(grad_dtype);
  Memory memory;
  const auto matrices = gradients_of(table, sizeof(float), grad.bytes, memory);
  const float* const goals_ptr = numbers<float>("sigma_init", goals, table.size(), memory);
  const void* const sigma_ptr = memory.reads("sigma", sigma, static_cast<Index>(table.size()), sizeof(float));
  const float* const grad_ptr = numbers<float>("gradient of sigma", grad_sigma, table.size(), memory);
  const auto launch = checked_launch(matrices, device, stream, workspace, workspace_bytes, cooperative, memory);
  const py::gil_scoped_release release;
  vitgan::cuda::spectral_norm_backward(matrices, grad.dtype, goals_ptr, static_cast<const float*>(sigma_ptr), grad_ptr,
                                       launch);
}

void bind_cuda(py::module_& module) {
  module.def("spectral_norm_workspace", &workspace_for<vitgan::Matrix>, py::arg("sizes"),
             "Bytes of device memory that spectral_norm_cuda needs for matrices of these (rows, cols).");
  module.def("spectral_norm_backward_workspace", &workspace_for<vitgan::Gradient>, py::arg("sizes"));
  module.def("spectral_norm_cuda", &forward_cuda, py::arg("matrices"), py::arg("scaled_dtype"), py::arg("sigma_init"),
             py::arg("sigma"), py::arg("n_iterations"), py::arg("eps"), py::arg("device"), py::arg("stream"),
             py::arg("workspace"), py::arg("workspace_bytes"), py::arg("cooperative"));
  module.def("spectral_norm_backward_cuda", &backward_cuda, py::arg("matrices"), py::arg("grad_dtype"),
             py::arg("sigma_init"), py::arg("sigma"), py::arg("grad_sigma"), py::arg("device"), py::arg("stream"),
             py::arg("workspace"), py::arg("workspace_bytes"), py::arg("cooperative"));
  module.def("check_cuda_device", &vitgan::cuda::check_device, py::arg("device"),
             "Raises RuntimeError, with CUDA's own text, unless the kernels can run on the device.");
}

#endif  // VITGAN_WITH_CUDA

}  // namespace

void vitgan::bind_spectral_norm(PyObject* handle) {
  auto module = py::reinterpret_borrow<py::module_>(handle);
  bind_cpu<float>(module, "float32");
  bind_cpu<double>(module, "float64");
#ifdef VITGAN_WITH_CUDA
  bind_cuda(module);
#endif
}
