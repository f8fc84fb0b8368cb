"""The trust ratios of the last step, for the ledger."""

from typing import Any

import torch


def adapted_ratios(optimizer: Any) -> dict[str, float]:
    """Return the ratio of each layer in a group that adapts, by parameter name; the mean where a layer has several.

    One transfer from the device for all of them.
    """
    adapted = {
        name for group in optimizer.param_groups if group.get("adapt", True) for name in group.get("param_names", ())
    }
    ratios = {name: ratio for name, ratio in optimizer.trust_ratios().items() if name in adapted}
    if not ratios:
        return {}
    means = torch.stack([ratio.double().mean() for ratio in ratios.values()]).tolist()
    return dict(zip(ratios, means, strict=True))
