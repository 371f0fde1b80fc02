"""Predicted times of the kernels on GPUs that nobody has measured them on: never mixed with measured ones."""
