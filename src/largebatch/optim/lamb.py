"""LAMB: Adam's direction, scaled layer by layer to the norm of the weights.

Algorithm 2 of *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes* (You et al., ICLR 2020,
arXiv 1904.00962v5), for each layer x of the network, at step t = 1, 2, ..., with g the gradient of the layer:

    m    <- beta1 * m + (1 - beta1) * g
    v    <- beta2 * v + (1 - beta2) * g * g
    mhat  = m / (1 - beta1^t)
    vhat  = v / (1 - beta2^t)
    r     = mhat / (sqrt(vhat) + eps)
    x    <- x - lr * phi(||x||) / ||r + weight_decay * x|| * (r + weight_decay * x)

The plain implementation below has the same order and letters, cut in two where the norms are known; u stands for
``r + weight_decay * x``. The faster ones (`kernels/`) are judged by it.
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
from largebatch.optim.options import check_choice, check_flag, check_number, check_pair, given_options


def update_moments_(m: Tensor, v: Tensor, g: Tensor, layers: Layers, rule: LambRule) -> None:
    """Move both moments of one layer towards the gradient and its square."""
    m.mul_(layers.unless_skipped(rule.beta1, 1.0)).add_(g, alpha=1 - rule.beta1)
    v.mul_(layers.unless_skipped(rule.beta2, 1.0)).addcmul_(g, g, value=1 - rule.beta2)


def corrected_moments(g: Tensor, m: Tensor, v: Tensor, t: Count, rule: LambRule) -> tuple[Tensor, Tensor]:
    """Return mhat and vhat of one layer, from moments that have seen g."""
    beta1, beta2 = rule.beta1, rule.beta2
    m, v = as_it_is(m), as_it_is(v)
    corrected = rule.bias_correction
    mhat = m / (1 - beta1**t) if corrected else m
    vhat = v / (1 - beta2**t) if corrected else v
    if rule.nesterov is not None:  # N-LAMB: the first moment of the next step, as far as g foretells it
        ahead, now = (1 - beta1 ** (t + 1), 1 - beta1**t) if corrected else (1, 1)
        mhat = beta1 * m / ahead + (1 - beta1) * g / now
    if rule.nesterov == "both":  # NN-LAMB: the second moment too
        ahead, now = (1 - beta2 ** (t + 1), 1 - beta2**t) if corrected else (1, 1)
        vhat = beta2 * v / ahead + (1 - beta2) * g * g / now
    return mhat, vhat


def lamb_direction(x: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Count, rule: LambRule) -> Tensor:
    """Return ``u = r + weight_decay * x`` of one layer, from moments that have seen g."""
    mhat, vhat = corrected_moments(g, m, v, t, rule)
    r = mhat / (vhat.sqrt() + rule.eps)
    return r + rule.weight_decay * x


def lamb_norms_(layers: Layers, rule: LambRule) -> Tensor:
    """Update m and v of each layer; return float64 [layers, 2]: the sums for ``||x||`` and ``||u||``."""
    sums = []
    moments = zip(layers.state["exp_avg"], layers.state["exp_avg_sq"], strict=True)
    for (x, g, t), (m, v) in zip(each_layer(layers, rule.maximize), moments, strict=True):
        update_moments_(m, v, g, layers, rule)
        x = as_it_is(x)
        u = lamb_direction(x, g, m, v, t, rule)
        sums.append(partial_sums(rule.norm, x, u))
    return torch.stack(sums)


def lamb_apply_(layers: Layers, rule: LambRule, ratios: Tensor, lr: float | Tensor) -> None:
    """Move each layer: ``x <- x - lr * ratio * u``, with ratios float64 [layers, 1]."""
    moments = zip(layers.state["exp_avg"], layers.state["exp_avg_sq"], strict=True)
    lengths = layers.lengths(lr, ratios[:, 0]).unbind()
    for i, ((x, g, t), (m, v)) in enumerate(zip(each_layer(layers, rule.maximize), moments, strict=True)):
        u = lamb_direction(x, g, m, v, t, rule)
        write_back_(layers, i, x - lengths[i] * u)


def check_lamb_options(options: Mapping[str, Any]) -> None:
    """Check the options that LAMB and LANS have and others do not."""
    check_pair("betas", options["betas"], least=0, below=1)
    # At eps 0 an entry whose gradients have all been zero divides 0 by 0 and never recovers. float32 has to hold it,
    # and its quotient by the root of the bias correction.
    check_number("eps", options["eps"], least=1e-30)
    check_number("weight_decay", options["weight_decay"], least=0)
    check_flag("bias_correction", options["bias_correction"])
    check_choice("nesterov", options["nesterov"], (None, "first", "both"))


def lamb_rule(options: Mapping[str, Any]) -> LambRule:
    """Return the record of a group's options that the kernels of LAMB and LANS need."""
    beta1, beta2 = options["betas"]
    return LambRule(
        beta1=float(beta1),
        beta2=float(beta2),
        eps=float(options["eps"]),
        weight_decay=float(options["weight_decay"]),
        bias_correction=options["bias_correction"],
        nesterov=options["nesterov"],
        maximize=options["maximize"],
        adapt=options["adapt"],
        norm=options["norm"],
    )


class LAMB(TrustRatioOptimizer):
    r"""Layerwise adaptive Adam for large batches, as published.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, &\hat m_t &= m_t / (1-\beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2) g_t^2, &\hat v_t &= v_t / (1-\beta_2^t) \\
        u_t &= \hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda x_t,
            &x_{t+1} &= x_t - \eta \, \frac{\phi(\lVert x_t \rVert)}{\lVert u_t \rVert} \, u_t

    for each layer (parameter) x. The ratio is 1 where x or u is zero and in groups with ``adapt=False``, where
    LAMB is AdamW. Source: Algorithm 2 of arXiv 1904.00962v5.

    Every option but `norm_process_group` and `differentiable` can be set per parameter group, and each is
    independent of the others.

    Args:
        params: parameters, named parameters, or groups of them; `layer_groups(model)` makes the usual groups.
        lr: eta, a number or a one-element tensor.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the corrected second moment; at least 1e-30.
        weight_decay: lambda, inside the direction and inside its norm.
        bias_correction: False is the paper's third version, for schedules that warm up.
        nesterov: "first" looks one step ahead in m (N-LAMB), "both" in m and v (NN-LAMB).
        adapt: whether the layers of the group have their ratio; False is ratio 1, whatever the decay.
        norm: 1, 2 or "inf"; of complex layers over real and imaginary parts alike.
        phi_bounds: (low, high): ``phi(z) = min(max(z, low), high)``; None is ``phi(z) = z``.
        ratio_bounds: (low, high) of the ratio, after phi; (0, 1) is LAMBC.
        max_grad_norm: clip the gradients to this global l2 norm, taken over all parameters whose group sets the
            option. The gradients themselves are not changed.
        stacked: (dim, count) for parameters that hold `count` equal layers along `dim`, such as a fused QKV
            projection: each block has a ratio of its own.
        master_weights: keep a float32 copy of half-precision parameters in the state ("master") and step that;
            the parameter is its rounded image, and what else is written into it is lost at the next step. Other
            dtypes have no use for one.
        norm_process_group: the process group that shares the parameters out, each whole on one of its processes, as
            `ZeroRedundancyOptimizer` does: the norm for clipping is then taken over all of them. One for the whole
            optimizer.
        maximize: ascend instead of descend.
        foreach: multi-tensor kernels (True), plain ones (False), or what `fused` says (None).
        capturable: keep the step counts on the parameters' device, so that nothing is read back from it and a
            CUDA graph can hold the step; where all groups are, a GradScaler leaves unscaling and skipping to the step.
        differentiable: let autograd see the step; plain kernels only.
        fused: fused kernels, one sweep over memory for each phase (True; where there are none it raises), or none of
            them (False). None takes them on a CPU if they were compiled when the package was installed, else
            multi-tensor kernels, and plain ones for subclasses of Tensor; the log says which. On a GPU they are
            Triton's and have to be asked for. A step within `torch.compile` is made of multi-tensor kernels unless
            this is True. `kernels()` says which take a step.

    State per parameter: `step`, `exp_avg`, `exp_avg_sq` (as torch's AdamW, whose state dict loads), and `master`.
    Moments are float32 for half-precision and float32 parameters and float64 for float64 ones.

    Raises:
        ValueError: an option outside its range, duplicate parameters, a stacked parameter that does not divide.
        NotImplementedError: an option or a kind of parameter that this version does not have.
        RuntimeError: fused kernels that are not there; in `step`: a sparse gradient, or a CUDA graph that is being
            captured though a group is not capturable.

    Example:
        >>> import torch
        >>> from largebatch.optim import LAMB
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LAMB([("x", x)], lr=0.1)
        >>> (x**2).sum().backward()
        >>> optimizer.step()  # moves x by exactly lr * ||x|| = 0.5
        >>> round(float((x.detach() - torch.tensor([3.0, 4.0])).norm()), 6)
        0.5
        >>> optimizer.trust_ratios()["x"].shape  # [directions, blocks]
        torch.Size([1, 1])
    """

    _algorithm: ClassVar[str] = "LAMB"
    _moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    _phases: ClassVar[dict[str, Phases]] = {
        "plain": Phases(squares, lamb_norms_, lamb_apply_, any_number_of_elements),
        "foreach": Phases(pieces.squares, multi_tensor.lamb_norms_, multi_tensor.lamb_apply_, pieces.kept_elements),
        "fused cpu": Phases(
            cpu.squares, cpu.lamb_norms_, cpu.lamb_apply_, any_number_of_elements, cpu.prepare, cpu.lamb_step_
        ),
        "fused cuda": Phases(gpu.squares, gpu.lamb_norms_, gpu.lamb_apply_, any_number_of_elements, gpu.prepare),
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
        super().__init__(params, given_options(LAMB, locals()))

    def _check_rule(self, options: Mapping[str, Any]) -> None:
        check_lamb_options(options)

    def _rule(self, options: Mapping[str, Any]) -> LambRule:
        return lamb_rule(options)
