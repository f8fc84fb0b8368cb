"""Which arithmetic a device is good at: bf16 where it has instructions for it, float32 elsewhere."""

from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]

# Measured on a CPU with AVX512-BF16: forward and backward pass of the demo's BERT 1.5 to 1.8 times as fast in bf16.
# Without such instructions bf16 is emulated and slower than float32.
_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


def best_precision(device: torch.device) -> Precision:
    """Return the faster of the two arithmetics on a device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    ask: Any = getattr(torch.cpu, "get_capabilities", dict)  # absent before torch 2.12
    capabilities = ask()
    return "bf16" if any(capabilities.get(name) for name in _CPU_BF16) else "fp32"


def chosen_precision(wished: Precision | Literal["auto"], device: torch.device) -> Precision:
    """Return the arithmetic that was asked for, for "auto" the faster one."""
    return best_precision(device) if wished == "auto" else wished
