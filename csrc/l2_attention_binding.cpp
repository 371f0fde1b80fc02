// L2 attention in the extension module: vitgan_kernels/l2_attention/native.py turns tensors into addresses and strides.
// Plain functions of Python's own interface: a call of 20 arguments costs a microsecond so, and three through pybind11.
#include <exception>
#include <new>

#include "binding.h"
#include "l2_attention.h"

namespace vitgan {
namespace {

// The arguments of a call, read one after the other. Once one does not fit, all further ones are zero.
class Arguments {
 public:
  Arguments(PyObject* const* args, Py_ssize_t count) : args_(args), left_(count) {}

  long long number() { return read([](PyObject* x) { return PyLong_AsLongLong(x); }); }
  double real() { return read([](PyObject* x) { return PyFloat_AsDouble(x); }); }
  bool flag() { return read([](PyObject* x) { return PyObject_IsTrue(x); }) != 0; }
  void* address() {
    return read([](PyObject* x) { return PyLong_AsVoidPtr(x); });
  }
  // of a shape or strides, (B, H, tokens, features)
  struct Four {
    long long at[4];
  };
  Four four() {
    return read([](PyObject* x) {
      Four numbers{};
      if (!PyTuple_Check(x) || PyTuple_GET_SIZE(x) != 4) {
        PyErr_SetString(PyExc_TypeError, "a shape or strides of four dimensions are needed");
        return numbers;
      }
      for (int i = 0; i < 4; ++i) numbers.at[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(x, i));
      return numbers;
    });
  }
  L2View view() {
    void* const data = address();
    const Four strides = four();
    return {data, strides.at[0], strides.at[1], strides.at[2]};
  }
  bool good() {
    if (left_ > 0 && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "too many arguments");
    return !PyErr_Occurred();
  }

 private:
  template <class Read>
  auto read(const Read& read) -> decltype(read(nullptr)) {
    if (PyErr_Occurred()) return {};
    if (left_-- <= 0) {
      PyErr_SetString(PyExc_TypeError, "too few arguments");
      return {};
    }
    return read(*args_++);
  }

  PyObject* const* args_;
  Py_ssize_t left_;
};

// threads, scale, euclidean, bf16, tied, q.shape, v.shape, lse; then an address and strides of each view
template <void (*RUN)(const L2Call&, int), L2View L2Call::*... VIEWS>
PyObject* call_of(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Arguments next(args, count);
  L2Call call{};
  const int threads = static_cast<int>(next.number());
  call.scale = static_cast<float>(next.real());
  call.euclidean = next.flag();
  call.bf16 = next.flag();
  call.tied = next.flag();
  const auto q = next.four(), v = next.four();
  call.B = q.at[0], call.H = q.at[1], call.N = q.at[2], call.d = q.at[3], call.M = v.at[2], call.e = v.at[3];
  call.shift = static_cast<float*>(next.address());
  call.inverse = call.shift + call.B * call.H * call.N;
  ((call.*VIEWS = next.view()), ...);
  if (!next.good()) return nullptr;
  PyThreadState* const released = PyEval_SaveThread();
  const char* error = nullptr;
  try {
    RUN(call, threads);
  } catch (const std::bad_alloc&) {
    error = "l2_attention: no memory is left for the kernels";
  } catch (const std::exception&) {
    error = "l2_attention: no kernel can run; vitgan_kernels._native.cpu_level() says why";
  }
  PyEval_RestoreThread(released);
  if (error) return PyErr_SetString(PyExc_RuntimeError, error), nullptr;
  Py_RETURN_NONE;
}

using C = L2Call;
constexpr auto forward = call_of<l2_forward, &C::q, &C::k, &C::v, &C::out>;
constexpr auto backward =
    call_of<l2_backward, &C::grad, &C::q, &C::k, &C::v, &C::dq, &C::dk, &C::dv>;
constexpr auto double_backward = call_of<l2_double_backward, &C::a, &C::b, &C::c, &C::grad, &C::q, &C::k, &C::v,
                                         &C::dout, &C::dq, &C::dk, &C::dv>;

PyCFunction as_function(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"l2_attention_forward", as_function(forward), METH_FASTCALL, "Views: q, k, v, out. Writes out and lse."},
    {"l2_attention_backward", as_function(backward), METH_FASTCALL, "Views: grad, q, k, v, dq, dk, dv."},
    {"l2_attention_double_backward", as_function(double_backward), METH_FASTCALL,
     "Views: a, b, c, grad, q, k, v, dout, dq, dk, dv."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void bind_l2_attention(PyObject* module) { PyModule_AddFunctions(module, methods); }

}  // namespace vitgan
