"""Layerwise optimizers for large batches, at home in torch.optim. Needs torch and NumPy only."""

from largebatch.optim.lamb import LAMB
from largebatch.optim.layer_groups import LayerGroups, layer_groups

__all__ = ["LAMB", "LayerGroups", "layer_groups"]
