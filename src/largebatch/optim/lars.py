r"""LARS: momentum, scaled layer by layer to the norm of the weights, by any of the three rules of that name.

**Algorithm 1** of *Large Batch Optimization for Deep Learning* (You et al., ICLR 2020, arXiv 1904.00962v5), for
each layer x, with g its gradient:

    m    <- momentum * m + (1 - momentum) * (g + weight_decay * x)
    x    <- x - lr * c * phi(||x||) / (||m|| + eps) * m                                               c = 1

**2017**, the rule of *Large Batch Training of Convolutional Networks* (You et al., arXiv 1708.03888) and of the
MLPerf reference: another ratio, of another size, and the rate is inside the momentum:

    ratio = c * phi(||x||) / (||g|| + weight_decay * ||x|| + eps)                                     c = 0.001
    v    <- momentum * v + lr * ratio * (g + weight_decay * x)
    x    <- x - v

**2017, rate outside**, as timm and apex's LARC have it: the same at a constant rate, and another rule as soon as
the rate changes:

    v    <- momentum * v + ratio * (g + weight_decay * x)
    x    <- x - lr * v

With Nesterov's momentum the step is along ``momentum * m + (1 - momentum) * (g + weight_decay * x)``, whose norm
the ratio then takes, in algorithm 1, and along ``momentum * v`` and the newest term of v in the other two. The
plain implementation below has the same order and letters.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from largebatch.optim.base import TrustRatioOptimizer
from largebatch.optim.kernels import cpu, gpu, pieces
from largebatch.optim.kernels import foreach as multi_tensor
from largebatch.optim.kernels.contract import LarsRule, LarsVersion, Layers, Norm, Phases, RatioRule
from largebatch.optim.kernels.plain import (
    any_number_of_elements,
    as_it_is,
    each_layer,
    partial_sums,
    squares,
    write_back_,
)
from largebatch.optim.options import check_choice, check_flag, check_number, given_options

VERSIONS: tuple[LarsVersion, ...] = ("algorithm1", "2017", "2017-lr-outside")


def _with_buffers(layers: Layers, rule: LarsRule) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield (x, g, g + weight_decay * x, momentum buffer) of each layer; without momentum there is no buffer."""
    decay = layers.unless_skipped(rule.weight_decay, 0.0)
    buffers = layers.state.get("momentum_buffer") or [None] * len(layers.x)
    for (x, g, _), m in zip(each_layer(layers, rule.maximize), buffers, strict=True):
        yield x, g, g + decay * x, m


def algorithm1_direction(d: Tensor, m: Tensor | None, rule: LarsRule) -> Tensor:
    """Return the direction of algorithm 1 for one layer: m, or one step ahead of it; d where there is no m."""
    if m is None:
        return d
    m = as_it_is(m)
    return rule.momentum * m + (1 - rule.momentum) * d if rule.nesterov else m


def lars_norms_(layers: Layers, rule: LarsRule) -> Tensor:
    """Return float64 [layers, 2], the sums for ``||x||`` and ``||m||`` (after its update) or, for 2017, ``||g||``."""
    sums = []
    for x, g, d, m in _with_buffers(layers, rule):
        measured = g
        if rule.version == "algorithm1":
            if m is not None:
                m.mul_(layers.unless_skipped(rule.momentum, 1.0)).add_(d, alpha=1 - rule.momentum)
            measured = algorithm1_direction(d, m, rule)
        sums.append(partial_sums(rule.norm, as_it_is(x), measured))
    return torch.stack(sums)


def lars_apply_(layers: Layers, rule: LarsRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Move each layer, and for 2017 its momentum, with ratios float64 [layers, 1]."""
    moved = layers.unless_skipped(1.0, 0.0)
    momentum = layers.unless_skipped(rule.momentum, 1.0)
    inside, outside = (1.0, lr) if rule.version == "2017-lr-outside" else (lr, moved)
    lengths = layers.lengths(inside, ratios[:, 0]).unbind()
    for i, (x, _, d, m) in enumerate(_with_buffers(layers, rule)):
        if rule.version == "algorithm1":
            write_back_(layers, i, x - lengths[i] * algorithm1_direction(d, m, rule))
            continue
        newest = lengths[i] * d
        step = newest
        if m is not None:
            m.mul_(momentum).add_(newest)
            step = rule.momentum * m + newest if rule.nesterov else as_it_is(m)
        write_back_(layers, i, x - outside * step)


class LARS(TrustRatioOptimizer):
    r"""Layerwise adaptive momentum for large batches: three rules of one name.

    ``rule="algorithm1"``, of arXiv 1904.00962v5, with :math:`\mu` the momentum, :math:`\lambda` the decay and c
    the trust coefficient:

    .. math::
        m_t &= \mu m_{t-1} + (1-\mu) (g_t + \lambda x_t) \\
        x_{t+1} &= x_t - \eta \, \frac{c \, \phi(\lVert x_t \rVert)}{\lVert m_t \rVert + \epsilon} \, m_t

    ``rule="2017"``, of arXiv 1708.03888 and MLPerf, and ``rule="2017-lr-outside"``, of timm and apex, with
    :math:`\rho_t = c \, \phi(\lVert x_t \rVert) / (\lVert g_t \rVert + \lambda \lVert x_t \rVert + \epsilon)`:

    .. math::
        v_t &= \mu v_{t-1} + \eta_t \rho_t (g_t + \lambda x_t), & x_{t+1} &= x_t - v_t
            & \text{(2017)} \\
        v_t &= \mu v_{t-1} + \rho_t (g_t + \lambda x_t), & x_{t+1} &= x_t - \eta_t v_t
            & \text{(rate outside)}

    for each layer (parameter) x. The last two agree while the rate is constant. The ratio is 1, without c, where
    x is zero, where what it divides by is zero (m, or g), and in groups with ``adapt=False``. The rates of the
    three rules are not of one size: algorithm 1 moves a layer by lr times its norm, 2017 by 0.001 lr times its
    norm over 1 - momentum.

    Args:
        params: parameters, named parameters, or groups of them; `layer_groups(model)` makes the usual groups.
        lr: eta, a number or a one-element tensor.
        momentum: mu, in [0, 1); without momentum there is no state.
        weight_decay: lambda, added to the gradient.
        rule: which of the three.
        trust_coefficient: c, positive; None is 1 for algorithm 1 and 0.001 for the others.
        nesterov: one step ahead of the momentum, which then has to be positive. Algorithm 1 goes along
            ``mu * m + (1 - mu) * (g + lambda * x)``, the others along ``mu * v`` and the newest term of v.
        eps: added to the denominator of the ratio; at least 0.

    The other options are those of `LAMB`. State per parameter: `momentum_buffer`, and `master`; the state
    of timm's Lars loads. At momentum 0 a buffer is dropped, and one that comes later begins at zero.

    Raises:
        ValueError: an option outside its range, duplicate parameters, a stacked parameter that does not divide.
        NotImplementedError: an option or a kind of parameter that this version does not have.
        RuntimeError: as `LAMB`, in `step`.

    Example:
        >>> import torch
        >>> from largebatch.optim import LARS
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LARS([("x", x)], lr=0.1)
        >>> (x**2).sum().backward()
        >>> optimizer.step()  # moves x by exactly lr * ||x|| = 0.5
        >>> round(float((x.detach() - torch.tensor([3.0, 4.0])).norm()), 6)
        0.5
    """

    _algorithm: ClassVar[str] = "LARS"
    _moments: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    _counts_steps: ClassVar[bool] = False
    _phases: ClassVar[dict[str, Phases]] = {
        "plain": Phases(squares, lars_norms_, lars_apply_, any_number_of_elements),
        "foreach": Phases(pieces.squares, multi_tensor.lars_norms_, multi_tensor.lars_apply_, pieces.kept_elements),
        "fused cpu": Phases(
            cpu.squares, cpu.lars_norms_, cpu.lars_apply_, any_number_of_elements, cpu.prepare, cpu.lars_step_
        ),
        "fused cuda": Phases(gpu.squares, gpu.lars_norms_, gpu.lars_apply_, any_number_of_elements, gpu.prepare),
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        *,
        rule: LarsVersion = "algorithm1",
        trust_coefficient: float | None = None,
        nesterov: bool = False,
        eps: float = 0.0,
        adapt: bool = True,
        norm: Norm = 2,
        phi_bounds: tuple[float, float] | None = None,
        ratio_bounds: tuple[float, float] | None = None,
        max_grad_norm: float | None = None,
        stacked: tuple[int, int] | None = None,
        master_weights: bool = False,
        norm_process_group: Any = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, given_options(LARS, locals()))

    def _check_rule(self, options: Mapping[str, Any]) -> None:
        check_number("momentum", options["momentum"], least=0, below=1)
        check_number("weight_decay", options["weight_decay"], least=0)
        check_number("eps", options["eps"], least=0)
        check_choice("rule", options["rule"], VERSIONS)
        check_flag("nesterov", options["nesterov"])
        if options["trust_coefficient"] is not None:
            check_number("trust_coefficient", options["trust_coefficient"], above=0)
        if options["nesterov"] and options["momentum"] == 0:
            raise ValueError("nesterov=True and momentum=0: there is nothing to look ahead with; it must be positive")

    def _moments_of(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        return self._moments if options["momentum"] else ()

    def _rule(self, options: Mapping[str, Any]) -> LarsRule:
        return LarsRule(
            version=options["rule"],
            momentum=float(options["momentum"]),
            weight_decay=float(options["weight_decay"]),
            nesterov=options["nesterov"],
            maximize=options["maximize"],
            adapt=options["adapt"],
            norm=options["norm"],
        )

    def _ratio_rule(self, options: Mapping[str, Any]) -> RatioRule:
        coefficient = options["trust_coefficient"]
        if coefficient is None:
            coefficient = 1.0 if options["rule"] == "algorithm1" else 0.001
        of_weights = 0.0 if options["rule"] == "algorithm1" else float(options["weight_decay"])
        return (
            super()
            ._ratio_rule(options)
            ._replace(coefficient=float(coefficient), of_weights=of_weights, eps=float(options["eps"]))
        )
