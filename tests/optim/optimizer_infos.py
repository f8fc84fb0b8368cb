"""Our optimizers as entries of PyTorch's own table of optimizers for tests, `OptimizerInfo`."""

from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import SGD, AdamW
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

from largebatch.optim import LAMB, LANS, LARS, Layerwise


class LayerwiseAdamW(Layerwise):
    """The general strategy as a class over parameters, as the table wants one."""

    def __init__(self, params: Any, lr: Any = 1e-3, weight_decay: float = 0.01, **options: Any) -> None:
        how = {key: value for key, value in options.items() if key in ("foreach", "differentiable")}
        super().__init__(AdamW(params, lr=lr, weight_decay=weight_decay, **how), **options)


class LayerwiseSGD(Layerwise):
    """The general strategy over momentum SGD."""

    def __init__(self, params: Any, lr: Any = 1e-3, weight_decay: float = 1e-4, **options: Any) -> None:
        how = {key: value for key, value in options.items() if key in ("foreach", "differentiable")}
        super().__init__(SGD(params, lr=lr, momentum=0.9, weight_decay=weight_decay, **how), **options)


class LARSWithARate(LARS):
    """LARS with a default rate: the table builds every optimizer without options too."""

    def __init__(self, params: Any, lr: Any = 1e-2, **options: Any) -> None:
        super().__init__(params, lr, **options)


def _inputs(*cases: tuple[str, dict[str, Any]]) -> Any:
    common = (
        ("default", {}),
        ("other rate", {"lr": 0.01}),
        ("maximize", {"maximize": True}),
        ("more decay", {"weight_decay": 0.1}),
        ("no decay, maximize", {"weight_decay": 0.0, "maximize": True}),
        ("not adapted", {"adapt": False}),
        ("norm inf, bounded", {"norm": "inf", "ratio_bounds": (0.1, 2.0)}),
    )

    def make(device: Any, dtype: Any = None) -> list[OptimizerInput]:
        return [_input(kwargs, desc) for desc, kwargs in (*common, *cases)]

    return make


def _error(kwargs: dict[str, Any], regex: str, error: Any = ValueError) -> ErrorOptimizerInput:
    return ErrorOptimizerInput(_input(kwargs, regex), error_type=error, error_regex=regex)


def _input(kwargs: dict[str, Any], desc: str) -> OptimizerInput:
    parameters: Any = None  # the tests' own
    return OptimizerInput(params=parameters, kwargs=dict(kwargs), desc=desc)


def _errors(*own: ErrorOptimizerInput, groups_are_the_bases: bool = False) -> Any:
    def make(device: Any, dtype: Any) -> list[ErrorOptimizerInput]:
        of_all = get_error_inputs_for_all_optims(device, dtype)
        case: Any
        for case in of_all:
            # torch warns of a parameter that a group has twice and means to raise; we raise.
            if case.error_type is UserWarning and not groups_are_the_bases:
                case.error_type, case.error_regex = ValueError, "names the same parameter twice"
            if "Tensor lr" in case.error_regex:
                case.error_regex = r"(lr is a tensor of shape \(2,\)|Tensor lr must be 1-element)"
        return [
            *of_all,
            _error({"lr": -1e-3}, "(lr is -0.001|Invalid learning rate)"),
            _error({"weight_decay": -0.1}, "([Ww]eight_decay)"),
            _error({"norm": 3}, "norm is 3"),
            _error({"fused": True, "foreach": True}, "foreach=True and fused=True"),
            _sparse_step(device, dtype),
            *own,
        ]

    return make


def _sparse_step(device: Any, dtype: Any) -> ErrorOptimizerInput:
    p = Parameter(torch.ones(2, 2, device=device, dtype=dtype))
    p.grad = torch.zeros(2, 2, device=device, dtype=dtype).to_sparse()
    return ErrorOptimizerInput(
        OptimizerInput(params=[p], kwargs={}, desc="a sparse gradient"),
        error_on=OptimizerErrorEnum.STEP_ERROR,
        error_type=RuntimeError,
        error_regex="sparse",
    )


def _info(kind: type, inputs: Any, errors: Any, *, capturable: bool = True, fused: bool = True) -> OptimizerInfo:
    implementations = ("foreach", "differentiable", *(("fused",) if fused else ()))
    flags = (*implementations, "maximize", *(("capturable",) if capturable else ()))
    return OptimizerInfo(
        kind,  # pyright: ignore[reportArgumentType]
        optim_inputs_func=inputs,
        optim_error_inputs_func=errors,
        supported_impls=implementations,
        not_og_supported_flags=flags,
        has_capturable_arg=capturable,
    )


_CLIPPED = ("clipped", {"max_grad_norm": 0.5})
_CAPTURABLE = ("capturable", {"capturable": True})

INFOS = [
    _info(
        LAMB,
        _inputs(
            _CLIPPED,
            _CAPTURABLE,
            ("capturable, tensor rate", {"capturable": True, "lr": torch.tensor(0.01)}),
            ("no correction", {"bias_correction": False}),
            ("look-ahead", {"nesterov": "both"}),
        ),
        _errors(
            _error({"betas": (1.0, 0.9)}, r"betas\[0\] is 1.0"), _error({"max_grad_norm": 0}, "max_grad_norm is 0")
        ),
    ),
    _info(
        LANS,
        _inputs(_CAPTURABLE, ("no correction", {"bias_correction": False})),
        _errors(_error({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0"), _error({"max_grad_norm": 1.0}, "None for LANS")),
    ),
    _info(
        LARSWithARate,
        _inputs(
            _CLIPPED,
            _CAPTURABLE,
            ("2017", {"rule": "2017", "lr": 1.0}),
            ("2017, rate outside", {"rule": "2017-lr-outside", "lr": 1.0, "nesterov": True}),
            ("no momentum", {"momentum": 0.0}),
        ),
        _errors(_error({"momentum": 1.0}, "momentum is 1.0"), _error({"rule": "2018"}, "rule is '2018'")),
    ),
    _info(LayerwiseAdamW, _inputs(_CLIPPED), _errors(groups_are_the_bases=True), capturable=False, fused=False),
    _info(LayerwiseSGD, _inputs(_CLIPPED), _errors(groups_are_the_bases=True), capturable=False, fused=False),
]
