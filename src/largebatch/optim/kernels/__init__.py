"""Kernels: the phases of a step, per backend, on lists of layers (see `contract.py`)."""
