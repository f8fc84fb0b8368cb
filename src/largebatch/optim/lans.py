r"""LANS: LAMB on gradients of unit norm, with Nesterov's momentum.

*Accelerated Large Batch Optimization of BERT Pretraining in 54 minutes* (Zheng et al., arXiv 2006.13484), and its
authors' code, for each layer x of the network, at step t = 1, 2, ..., with g the gradient of the layer:

    g    <- g / ||g||
    m    <- beta1 * m + (1 - beta1) * g
    v    <- beta2 * v + (1 - beta2) * g * g
    mhat  = m / (1 - beta1^t)
    vhat  = v / (1 - beta2^t)
    r     = mhat / (sqrt(vhat) + eps) + weight_decay * x
    c     = g    / (sqrt(vhat) + eps) + weight_decay * x
    x    <- x - lr * (beta1 * phi(||x||)/||r|| * r + (1 - beta1) * phi(||x||)/||c|| * c)

with one ||x|| for both terms, that of the weights before the step. The plain implementation below has the same
order and letters; the gradients come to it normalised.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from largebatch.optim.base import TrustRatioOptimizer
from largebatch.optim.kernels import cpu, gpu, pieces
from largebatch.optim.kernels import foreach as multi_tensor
from largebatch.optim.kernels.contract import Count, LambRule, Layers, Nesterov, Norm, Phases
from largebatch.optim.kernels.plain import (
    any_number_of_elements,
    as_it_is,
    each_layer,
    partial_sums,
    squares,
    write_back_,
)
from largebatch.optim.lamb import check_lamb_options, corrected_moments, lamb_rule, update_moments_
from largebatch.optim.options import given_options


def lans_directions(x: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Count, rule: LambRule) -> tuple[Tensor, Tensor]:
    """Return r and c of one layer, from moments that have seen g."""
    mhat, vhat = corrected_moments(g, m, v, t, rule)
    d = vhat.sqrt() + rule.eps
    return mhat / d + rule.weight_decay * x, g / d + rule.weight_decay * x


def lans_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Update m and v of each layer; return float64 [layers, 3]: the sums for ``||x||``, ``||r||`` and ``||c||``."""
    sums = []
    moments = zip(layers.state["exp_avg"], layers.state["exp_avg_sq"], strict=True)
    for (x, g, t), (m, v) in zip(each_layer(layers, rule.maximize), moments, strict=True):
        update_moments_(m, v, g, layers, rule)
        x = as_it_is(x)
        r, c = lans_directions(x, g, m, v, t, rule)
        sums.append(partial_sums(rule.norm, x, r, c))
    return torch.stack(sums)


def lans_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Move each layer along r and c, with the ratios of both, float64 [layers, 2]."""
    moments = zip(layers.state["exp_avg"], layers.state["exp_avg_sq"], strict=True)
    lengths = layers.lengths(lr, ratios)
    for i, ((x, g, t), (m, v)) in enumerate(zip(each_layer(layers, rule.maximize), moments, strict=True)):
        r, c = lans_directions(x, g, m, v, t, rule)
        length_r, length_c = lengths[i].unbind()
        write_back_(layers, i, x - (rule.beta1 * length_r * r + (1 - rule.beta1) * length_c * c))


class LANS(TrustRatioOptimizer):
    r"""LAMB on gradients of unit norm, with Nesterov's momentum.

    .. math::
        \tilde g_t &= g_t / \lVert g_t \rVert \\
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) \tilde g_t, \qquad \hat m_t = m_t / (1-\beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) \tilde g_t^2, \qquad \hat v_t = v_t / (1-\beta_2^t) \\
        r_t &= \hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda x_t, \qquad
            c_t = \tilde g_t / (\sqrt{\hat v_t} + \epsilon) + \lambda x_t \\
        x_{t+1} &= x_t - \eta \left( \beta_1 \frac{\phi(\lVert x_t \rVert)}{\lVert r_t \rVert} r_t
            + (1-\beta_1) \frac{\phi(\lVert x_t \rVert)}{\lVert c_t \rVert} c_t \right)

    for each layer (parameter) x. Both ratios are 1 in groups with ``adapt=False``, and each is 1 where x or its
    direction is zero. The gradient is normalised in every group, by its l2 norm whatever `norm` says; a zero
    gradient stays zero. Source: arXiv 2006.13484 and its authors' code.

    Args:
        params: parameters, named parameters, or groups of them; `layer_groups(model)` makes the usual groups.
        lr: eta, a number or a one-element tensor.
        betas: decay of the first and second moment, each in [0, 1); the first also weighs r against c.
        eps: added to the root of the corrected second moment; at least 1e-30.
        weight_decay: lambda, inside both directions and their norms.
        bias_correction: False leaves the moments as they are.
        nesterov: a further look-ahead inside r, as in `LAMB`; the paper has None.
        max_grad_norm: has to be None: the length of a gradient has no part in the step.

    The other options are those of `LAMB`. State per parameter, as in `LAMB`: `step`, `exp_avg`, `exp_avg_sq`, and
    `master`. `trust_ratios()` has two rows: the ratios of r and of c.

    Raises:
        ValueError: an option outside its range, duplicate parameters, a stacked parameter that does not divide.
        NotImplementedError: an option or a kind of parameter that this version does not have.
        RuntimeError: as `LAMB`, in `step`.

    Example:
        >>> import torch
        >>> from largebatch.optim import LANS
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LANS([("x", x)], lr=0.1)
        >>> (x**2).sum().backward()
        >>> optimizer.step()
        >>> optimizer.trust_ratios()["x"].shape  # [directions, blocks]
        torch.Size([2, 1])
    """

    _algorithm: ClassVar[str] = "LANS"
    _moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    _directions: ClassVar[int] = 2
    _normalises_gradients: ClassVar[bool] = True
    _phases: ClassVar[dict[str, Phases]] = {
        "plain": Phases(squares, lans_norms_, lans_apply_, any_number_of_elements),
        "foreach": Phases(
            pieces.squares, multi_tensor.lans_norms_, multi_tensor.lans_apply_, multi_tensor.half_as_many_elements
        ),
        "fused cpu": Phases(
            cpu.squares, cpu.lans_norms_, cpu.lans_apply_, any_number_of_elements, cpu.prepare, cpu.lans_step_
        ),
        "fused cuda": Phases(gpu.squares, gpu.lans_norms_, gpu.lans_apply_, any_number_of_elements, gpu.prepare),
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        nesterov: Nesterov = None,
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
        super().__init__(params, given_options(LANS, locals()))

    def _check_rule(self, options: Mapping[str, Any]) -> None:
        check_lamb_options(options)
        if options["max_grad_norm"] is not None:
            raise ValueError(
                f"max_grad_norm is {options['max_grad_norm']!r}; it must be None for LANS, which divides each "
                "layer's gradient by its norm, so that clipping would change nothing"
            )

    def _rule(self, options: Mapping[str, Any]) -> LambRule:
        return lamb_rule(options)
