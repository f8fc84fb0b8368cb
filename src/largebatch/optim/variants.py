"""The variants of LAMB that were published or shipped, by name.

Each is `LAMB` with some options. What a maker does beside the rule (a default rate, a schedule) is not part of it.

    >>> import torch
    >>> from largebatch.optim import variants
    >>> optimizer = variants["lambc"].build(torch.nn.Linear(2, 2).parameters(), lr=6e-3)
    >>> optimizer.param_groups[0]["ratio_bounds"]
    (0.0, 1.0)
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from largebatch.optim.lamb import LAMB


@dataclass(frozen=True, slots=True)
class Variant:
    """One rule of the family."""

    name: str
    what: str
    """In one sentence, beside Algorithm 2 of the paper's fifth version."""
    source: str
    options: Mapping[str, Any]
    """The options of `LAMB` that make it."""
    of_every_group: tuple[str, ...] = ()
    """Those of the options that hold whatever a parameter group says."""

    def build(self, params: ParamsT, **overrides: Any) -> LAMB:
        """Return `LAMB` with the variant's options, and with others given here, which win.

        Args:
            params: as for `LAMB`; options that a group has for itself stay, but for those of `of_every_group`.
            overrides: options of `LAMB`.

        Raises:
            TypeError: an override is no option of `LAMB`.
            ValueError: as `LAMB`.
        """
        dropped = [name for name in self.of_every_group if name not in overrides]
        return LAMB(_without(params, dropped), **{**self.options, **overrides})


def _without(params: ParamsT, names: Iterable[str]) -> Any:
    if isinstance(params, Tensor):
        return params  # torch says what is wrong
    return [
        {key: value for key, value in some.items() if key not in names} if isinstance(some, dict) else some
        for some in params
    ]


_VARIANTS = (
    Variant(
        "paper-v5",
        "Algorithm 2 as published at ICLR 2020; versions 1 and 4 of the preprint are the same rule.",
        "arXiv 1904.00962v5",
        MappingProxyType({}),
    ),
    Variant(
        "paper-v3",
        "Without bias correction: the early steps are along smaller moments, whose length the ratio takes out but "
        "for eps and the decay.",
        "arXiv 1904.00962v3",
        MappingProxyType({"bias_correction": False}),
    ),
    Variant(
        "nvlamb",
        "The gradient is first divided by its global norm where that is above 1, and every layer is adapted, biases "
        "and norms too.",
        "NVIDIA's BERT for PyTorch, apex FusedLAMB(use_nvlamb=True)",
        MappingProxyType({"max_grad_norm": 1.0, "adapt": True}),
        of_every_group=("adapt",),
    ),
    Variant(
        "lambc",
        "The ratio is at most 1.",
        "LAMBC, Fong et al., arXiv 2011.13584",
        MappingProxyType({"ratio_bounds": (0.0, 1.0)}),
    ),
    Variant(
        "deepspeed-clamp",
        "The ratio is kept in [0.01, 0.3]; the place of the bias correction is the paper's, not DeepSpeed's.",
        "DeepSpeed FusedLamb(min_coeff=0.01, max_coeff=0.3)",
        MappingProxyType({"ratio_bounds": (0.01, 0.3)}),
    ),
    Variant(
        "n-lamb",
        "Nesterov's look-ahead in the first moment.",
        "appendix of arXiv 1904.00962v5",
        MappingProxyType({"nesterov": "first"}),
    ),
    Variant(
        "nn-lamb",
        "Nesterov's look-ahead in both moments.",
        "appendix of arXiv 1904.00962v5",
        MappingProxyType({"nesterov": "both"}),
    ),
)


class UnknownVariantError(KeyError, ValueError):
    """A name that no variant has; it says which there are."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Variants(Mapping[str, Variant]):
    def __init__(self, known: Iterable[Variant]) -> None:
        self._known = {variant.name: variant for variant in known}

    def __getitem__(self, name: str) -> Variant:
        try:
            return self._known[name]
        except (KeyError, TypeError):
            names = ", ".join(map(repr, self._known))
            raise UnknownVariantError(f"there is no variant {name!r} of LAMB; there are {names}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"variants: {', '.join(self._known)}"


variants: Mapping[str, Variant] = _Variants(_VARIANTS)
"""The named variants of LAMB; "paper-v5" is what `LAMB` does without further options."""
