// The modulated SIREN in the extension module. Calls are small and many, so arguments come as one flat row of numbers:
//   threads, batch, points, sine, shared, bf16, demodulate, omega, eps, x, out, grad, grad_x,
// then for each layer
//   inputs, outputs, weight, style, bias, scale, products, grad_weight, grad_style, grad_bias, grad_scale,
// where tensors are addresses, 0 for none. native.py of the operator has checked what they are.
#include "binding.h"

#include <exception>
#include <vector>

#include "modulated_siren.h"

namespace {

using vitgan::Siren;
using vitgan::SirenLayer;

constexpr Py_ssize_t kFirst = 13, kEach = 11;

long long whole(PyObject* number) { return PyLong_AsLongLong(number); }
template <typename T = void>
T* address(PyObject* number) {
  return static_cast<T*>(PyLong_AsVoidPtr(number));
}

PyObject* run(void (*function)(const Siren&, int), PyObject* const* a, Py_ssize_t count) {
  if (count < kFirst + kEach || (count - kFirst) % kEach) {
    PyErr_Format(PyExc_TypeError, "%zd arguments; %zd and %zd for each layer are needed", count, kFirst, kEach);
    return nullptr;
  }
  try {
    Siren call{};
    call.depth = (count - kFirst) / kEach;
    std::vector<SirenLayer> layers(static_cast<std::size_t>(call.depth));
    call.layers = layers.data();
    const int threads = static_cast<int>(whole(a[0]));
    call.batch = whole(a[1]);
    call.points = whole(a[2]);
    call.sine = whole(a[3]) != 0;
    call.shared = whole(a[4]) != 0;
    call.bf16 = whole(a[5]) != 0;
    call.demodulate = whole(a[6]) != 0;
    call.omega = static_cast<float>(PyFloat_AsDouble(a[7]));
    call.eps = static_cast<float>(PyFloat_AsDouble(a[8]));
    call.x = address(a[9]);
    call.out = address(a[10]);
    call.grad = address(a[11]);
    call.grad_x = address(a[12]);
    PyObject* const* b = a + kFirst;
    bool sizes_fit = call.batch > 0 && call.points > 0 && call.x;
    for (SirenLayer& y : layers) {
      y = {whole(b[0]),       whole(b[1]),    address(b[2]), address(b[3]), address(b[4]),       address<float>(b[5]),
           address<float>(b[6]), address(b[7]), address(b[8]), address(b[9]), address<float>(b[10])};
      sizes_fit = sizes_fit && y.inputs > 0 && y.outputs > 0 && y.weight && y.style && (y.scale || !call.demodulate);
      b += kEach;
    }
    if (PyErr_Occurred()) return nullptr;
    if (!sizes_fit) {
      PyErr_SetString(PyExc_ValueError, "a size is below 1, or a tensor that is needed is missing");
      return nullptr;
    }
    std::exception_ptr failure;
    Py_BEGIN_ALLOW_THREADS;
    try {
      function(call, threads);
    } catch (...) {
      failure = std::current_exception();
    }
    Py_END_ALLOW_THREADS;
    if (failure) std::rethrow_exception(failure);
    Py_RETURN_NONE;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return run(vitgan::siren_forward, arguments, count);
}
PyObject* backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return run(vitgan::siren_backward, arguments, count);
}

PyMethodDef functions[] = {
    {"modulated_siren_forward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(forward)), METH_FASTCALL,
     "The output, and the scales and products that there is a place for."},
    {"modulated_siren_backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(backward)), METH_FASTCALL,
     "All gradients that there is a place for."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void vitgan::bind_modulated_siren(PyObject* module) { PyModule_AddFunctions(module, functions); }
