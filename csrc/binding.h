// The parts of the extension module vitgan_kernels._native, one for each operator. Raw addresses and sizes come in, and
// results go out through the addresses: no PyTorch header, so one build serves every PyTorch.
#pragma once

#include <Python.h>

namespace vitgan {

// Each adds its operator's functions to the module. They may throw.
void bind_spectral_norm(PyObject* module);
void bind_modulated_siren(PyObject* module);
void bind_l2_attention(PyObject* module);

}  // namespace vitgan
