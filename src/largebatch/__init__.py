"""largebatch: large-batch optimization for PyTorch.

The names below need torch and NumPy only; everything else (``largebatch.train``, the command line) comes with the
extra ``train``.
"""

from largebatch.optim import LAMB, LANS, LARS, Layerwise, layer_groups, variants

__all__ = ["LAMB", "LANS", "LARS", "Layerwise", "layer_groups", "variants"]
