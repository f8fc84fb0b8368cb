"""Parameter groups from a model: who decays and who has a trust ratio, two separate decisions.

The BERT recipe of arXiv 1904.00962 leaves biases and normalisation layers out of both; its ResNet-50 code leaves
out batch normalisation only. What is left out is told by module type and by names.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from largebatch.optim.options import check_number, check_stacked, check_stacked_shape

Rule = str | type[nn.Module]
_NORM = re.compile(r"(Norm|(?<![A-Za-z])norm)(?!al(?!i[sz]))|NORM|norm(\dd)?$")
"""The word norm in the name of a class: LayerNorm, BatchNorm2d, layernorm; not EnormousModel, not NormalHead."""


@dataclass
class _Entry:
    """A parameter under all its names; tied weights have several."""

    parameter: nn.Parameter
    names: list[str] = field(default_factory=list)
    owners: list[nn.Module] = field(default_factory=list)
    meant: list[str] = field(default_factory=list)
    """Its names as the rules see them: of a parametrized tensor, the name that it has without."""
    scales: bool = False
    """Whether it is the magnitude of a weight normalisation."""


class LayerGroups(list[dict[str, Any]]):
    """Parameter groups with the keys `params`, `param_names`, `weight_decay`, `adapt` and, where asked, `stacked`.

    ``str()`` is the table of who decays and who adapts; layers that differ only in their numbers share a line.
    """

    def __str__(self) -> str:
        """Return the table; groups that were added by hand may lack what ours have."""
        stacks = any("stacked" in group for group in self)
        rows = [["parameters", "shape", "count", "elements", "weight_decay", "adapt", *(["stacked"] if stacks else [])]]
        for group in self:
            alike: dict[tuple[str, str], list[nn.Parameter]] = {}
            names = group.get("param_names") or [f"parameter {n}" for n in range(len(group["params"]))]
            for name, p in zip(names, group["params"], strict=True):
                shape = " x ".join(map(str, p.shape)) or "scalar"
                shape += "" if p.requires_grad else " (frozen)"
                alike.setdefault((re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name), shape), []).append(p)
            for (name, shape), some in alike.items():
                rows.append([name, shape, *_counts(some), *_decisions(group, stacks)])
        for group in self:
            rows.append(["in all", "", *_counts(group["params"]), *_decisions(group, stacks)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if column in (2, 3, 4) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def _counts(parameters: Sequence[nn.Parameter]) -> tuple[str, str]:
    return str(len(parameters)), f"{sum(p.numel() for p in parameters):,}"


def _decisions(group: dict[str, Any], stacks: bool) -> list[str]:
    decay, adapt = group.get("weight_decay"), group.get("adapt")
    adapts = "default" if adapt is None else "yes" if adapt else "no"
    made = ["default" if decay is None else f"{decay:g}", adapts]
    if stacks:
        dim, count = group.get("stacked") or (None, None)
        made.append("" if dim is None else f"{count} along {dim}")
    return made


def layer_groups(
    model: nn.Module,
    weight_decay: float = 0.01,
    no_decay: Sequence[Rule] = ("bias", "norm"),
    no_adapt: Sequence[Rule] = ("bias", "norm"),
    *,
    stacked: Mapping[Rule, tuple[int, int]] | None = None,
) -> LayerGroups:
    """Return parameter groups: decaying or not, adapted or not. Prints nothing; ``print`` the result.

    A rule in `no_decay`, `no_adapt` or `stacked` is one of

    - "bias": parameters whose own name has the word bias (``bias``, ``in_proj_bias``, ``bias_ih_l0``);
    - "norm": parameters of a torch normalisation layer, or of any module whose class (or a base of it) has the word
      norm in its name, if they are vectors: a matrix there is taken for a linear map that normalises its input; and
      the magnitudes of a weight normalisation;
    - a module class: parameters that an instance owns directly, such as ``nn.Embedding``;
    - any other string: a glob over whole dotted parts of the name. ``"embeddings"`` and ``"LayerNorm.weight"``
      match wherever these parts stand, ``"head.*.weight"`` only below a part ``head``.

    A parametrized tensor is told by the name that it has without its parametrization. Tied weights appear once, under
    their first name, and are left out if any of their names is. Frozen parameters are included: they take no step and
    cost nothing until they have a gradient, so that thawing needs no new groups and the numbers in a state dict do not
    depend on what was frozen.

    Args:
        model: any module.
        weight_decay: of the groups that decay; those left out have 0.
        no_decay: rules for what does not decay.
        no_adapt: rules for what has ratio 1.
        stacked: (dim, count) by rule, for parameters that hold `count` equal layers along `dim`, each with a ratio
            of its own: ``{"in_proj_weight": (0, 3)}`` for torch's attention, ``{"c_attn.weight": (1, 3)}`` for
            GPT-2's, whose maps are transposed, ``{"experts.*": (0, 8)}`` for eight experts in one tensor. Such
            parameters have groups of their own.

    Returns:
        A list of groups for `LAMB` or, but for the keys `adapt` and `stacked`, any torch optimizer; empty groups
        are left away.

    Raises:
        ValueError: the model is none or has no parameters, the decay is not a number at least 0, or a rule is neither
            a string nor a module class, or is a pattern or class that matches nothing; a parameter that cannot be
            cut as `stacked` says, or that two rules cut differently.

    Example:
        >>> from torch import nn
        >>> from largebatch.optim import layer_groups
        >>> print(layer_groups(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))))
        parameters  shape  count  elements  weight_decay  adapt
        *.weight    4 x 3      1        12          0.01  yes
        *.weight    2 x 4      1         8          0.01  yes
        *.bias      4          2         8             0  no
        *.weight    4          1         4             0  no
        *.bias      2          1         2             0  no
        in all                 2        20          0.01  yes
        in all                 4        14             0  no
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"of type {type(model).__name__}"
        raise ValueError(f"model is {given}; it must be a torch.nn.Module")
    if stacked is not None and not isinstance(stacked, Mapping):
        raise ValueError(f"stacked is {stacked!r}; it must be a mapping from rules to (dim, count)")
    check_number("weight_decay", weight_decay, least=0)
    entries = _entries(model)
    if not entries:
        raise ValueError(f"{type(model).__name__} has no parameters")
    without_decay = _matches(entries, "no_decay", no_decay)
    without_ratio = _matches(entries, "no_adapt", no_adapt)
    cuts = _cuts(entries, stacked or {})
    groups = LayerGroups()
    for cut in (None, *dict.fromkeys(cuts.values())):
        for decays in (True, False):
            for adapts in (True, False):
                wanted = (decays, adapts, cut)
                some = [
                    entry
                    for i, entry in enumerate(entries)
                    if (i not in without_decay, i not in without_ratio, cuts.get(i)) == wanted
                ]
                if some:
                    groups.append(
                        {
                            "params": [e.parameter for e in some],
                            "param_names": [e.names[0] for e in some],
                            "weight_decay": float(weight_decay) if decays else 0.0,
                            "adapt": adapts,
                        }
                        | ({} if cut is None else {"stacked": cut})
                    )
    return groups


def _cuts(entries: list[_Entry], stacked: Mapping[Rule, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Return (dim, count) by the number of the entry, for those that hold several layers."""
    cuts: dict[int, tuple[int, int]] = {}
    for rule, cut in stacked.items():
        check_stacked(cut)
        dim, count = map(int, cut)
        for i in sorted(_matches(entries, "stacked", (rule,))):
            name = entries[i].names[0]
            check_stacked_shape(f"by the rule {rule!r}, {name}", entries[i].parameter, (dim, count))
            if cuts.setdefault(i, (dim, count)) != (dim, count):
                raise ValueError(f"stacked has two rules for {name}, which cut it differently: {cuts[i]} and {cut}")
    return cuts


def _entries(model: nn.Module) -> list[_Entry]:
    entries: dict[int, _Entry] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            entry = entries.setdefault(id(p), _Entry(p))
            own = name.rpartition(".")[2]
            entry.names.append(name)
            if isinstance(module, ParametrizationList):
                # MODULE.parametrizations.TENSOR.original stands for MODULE.TENSOR.
                path, _, tensor = prefix.rpartition(".parametrizations.") if "." in prefix else ("", "", prefix)
                path, tensor = ("", tensor.removeprefix("parametrizations.")) if not path else (path, tensor)
                entry.meant.append(f"{path}.{tensor}" if path else tensor)
                entry.owners.append(model.get_submodule(path))
                entry.scales |= own == "original0" and "WeightNorm" in type(module[0]).__name__
            else:
                entry.meant.append(name)
                entry.owners.append(module)
                entry.scales |= own.endswith("_g") and hasattr(module, f"{own.removesuffix('_g')}_v")
    return list(entries.values())


def _matches(entries: list[_Entry], option: str, rules: Sequence[Rule]) -> set[int]:
    """Return the numbers of the entries that any rule matches."""
    if isinstance(rules, (str, type)) or not isinstance(rules, Iterable):
        raise ValueError(f"{option} is {rules!r}; it must be a sequence of rules, such as ('bias', 'norm')")
    matched: set[int] = set()
    for rule in rules:
        if not isinstance(rule, str) and not (isinstance(rule, type) and issubclass(rule, nn.Module)):
            raise ValueError(f"{option} has the rule {rule!r}; a rule is a string or a module class")
        found = {i for i, entry in enumerate(entries) if _matches_rule(entry, rule)}
        if not found and rule not in ("bias", "norm"):
            raise ValueError(
                f"{option} has the rule {rule!r}, which matches no parameter; strings other than 'bias' and 'norm' "
                "are globs over whole dotted parts of a name"
            )
        matched |= found
    return matched


def _matches_rule(entry: _Entry, rule: Rule) -> bool:
    if isinstance(rule, type):
        return any(isinstance(owner, rule) for owner in entry.owners)
    if rule == "bias":
        return any("bias" in name.rpartition(".")[2].lower().split("_") for name in entry.meant)
    if rule == "norm":
        return entry.scales or any(_normalises(owner, entry.parameter) for owner in entry.owners)
    # Dots at both ends make "whole dotted parts" a plain glob.
    return any(fnmatch.fnmatchcase(f".{name}.", f"*.{rule}.*") for name in {*entry.names, *entry.meant})


def _normalises(owner: nn.Module, p: nn.Parameter) -> bool:
    kinds = [kind for kind in type(owner).__mro__ if _NORM.search(kind.__name__)]
    if any(kind.__module__.startswith("torch.nn.modules.") for kind in kinds):
        return True
    return bool(kinds) and sum(size > 1 for size in p.shape) <= 1
