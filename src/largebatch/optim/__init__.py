"""Layerwise optimizers for large batches, at home in torch.optim. Needs torch and NumPy only."""

from largebatch.optim.lamb import LAMB
from largebatch.optim.lans import LANS
from largebatch.optim.lars import LARS
from largebatch.optim.layer_groups import LayerGroups, layer_groups
from largebatch.optim.layerwise import Layerwise
from largebatch.optim.step_monitor import StepMonitor
from largebatch.optim.variants import Variant, variants

__all__ = [
    "LAMB",
    "LANS",
    "LARS",
    "LayerGroups",
    "Layerwise",
    "StepMonitor",
    "Variant",
    "layer_groups",
    "variants",
]
