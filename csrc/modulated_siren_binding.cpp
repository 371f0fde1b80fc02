// The modulated SIREN in the extension module.
#include "binding.h"

void vitgan::bind_modulated_siren(PyObject*) {}
