"""What several processes do in the tests of norms over shards; what each found goes into one file a rank.

Started as a program: RANK WORLD_SIZE FOLDER.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from largebatch.optim import LAMB, LANS, LARS, Layerwise, StepMonitor, shards
from largebatch.train.distributed import leave_world

SHAPES = {
    "first.weight": (8, 6),
    "first.bias": (8,),
    "second.weight": (4, 8),
    "second.bias": (4,),
    "odd": (5, 3),
    "small": (2, 3),  # nothing of it lies on the third and fourth of four processes
    "one": (1,),
    "zero": (3, 2),  # weights of zeros
}
STACKED = {"first.weight": (0, 2), "second.weight": (0, 4), "odd": (1, 3), "small": (0, 2)}
STEPS = 20

Tensors = dict[str, Tensor]


def weights(dtype: torch.dtype = torch.float64) -> Tensors:
    """Return the same weights in every process."""
    generator = torch.Generator().manual_seed(3)
    made = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()
    }
    made["zero"].zero_()
    return made


def gradients(step: int, dtype: torch.dtype = torch.float64) -> Tensors:
    """Return the same gradients in every process."""
    generator = torch.Generator().manual_seed(100 + step)
    return {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0**-i).to(dtype)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


# ---- layouts ----------------------------------------------------------------------------------------------------

Lay = Callable[[Tensor], Tensor]
"""Takes a whole tensor, the same in every process, to how it lies."""


def _by(mesh: DeviceMesh, *placements: Placement) -> Lay:
    return lambda a: distribute_tensor(a.clone(), mesh, placements, src_data_rank=None)


def _whole(a: Tensor) -> Tensor:
    return a.clone()


@cache
def _meshes() -> tuple[DeviceMesh, DeviceMesh]:
    """Return a line and a square; made once, since each brings groups with connections and threads."""
    ranks = dist.get_world_size()
    return init_device_mesh("cpu", (ranks,)), init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("dp", "tp"))


def rows() -> dict[str, Lay]:
    """As `fully_shard` has them: even, uneven and empty."""
    mesh, _ = _meshes()
    return dict.fromkeys(SHAPES, _by(mesh, Shard(0)))


def columns() -> dict[str, Lay]:
    """Matrices cut along their rows, column by column; vectors on every process."""
    mesh, _ = _meshes()
    return {name: _by(mesh, Shard(1) if len(shape) == 2 else Replicate()) for name, shape in SHAPES.items()}


def replicated() -> dict[str, Lay]:
    """All of everything on every process."""
    mesh, _ = _meshes()
    return dict.fromkeys(SHAPES, _by(mesh, Replicate()))


def hybrid() -> dict[str, Lay]:
    """HSDP: shards within each half of the processes."""
    _, mesh = _meshes()
    return dict.fromkeys(SHAPES, _by(mesh, Replicate(), Shard(0)))


def both_ways() -> dict[str, Lay]:
    """Matrices cut along both dimensions of a mesh, vectors along the first."""
    _, mesh = _meshes()
    kinds = {1: (Shard(0), Replicate()), 2: (Shard(0), Shard(1))}
    return {name: _by(mesh, *kinds[len(shape)]) for name, shape in SHAPES.items()}


def mixed() -> dict[str, Lay]:
    """Plain tensors and DTensors of three meshes in one list."""
    line, square = _meshes()
    kinds = [_whole, _by(line, Shard(0)), _by(square, Replicate(), Shard(0)), _by(square["tp"], Shard(0))]
    return {name: kinds[i % len(kinds)] for i, name in enumerate(SHAPES)}


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        for name in ("odd", "small", "one", "zero"):
            self.register_parameter(name, nn.Parameter(torch.empty(SHAPES[name])))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def _as_wrapped(wrap: Callable[[_Network], None]) -> dict[str, Lay]:
    """Return how the parameters of a network lie that PyTorch has wrapped, found by numbers in their place."""
    model = _Network().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.arange(p.numel(), dtype=torch.float64).view(p.shape))
    wrap(model)

    def lay(p: Any) -> Lay:
        if not isinstance(p, DTensor):
            return _whole
        places = p.to_local().detach().long().clone()

        def laid(a: Tensor) -> Tensor:
            return DTensor.from_local(
                a.flatten()[places], p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
            )

        return laid

    return {name: lay(p) for name, p in model.named_parameters()}


def fully_sharded() -> dict[str, Lay]:
    """By `fully_shard`."""
    return _as_wrapped(lambda model: fully_shard(model, mesh=_meshes()[0]) and None)


def in_two_dimensions() -> dict[str, Lay]:
    """By `fully_shard` over tensor parallelism, where one dimension is cut twice."""

    def wrap(model: _Network) -> None:
        _, mesh = _meshes()
        parallelize_module(model, mesh["tp"], {"first": ColwiseParallel(), "second": RowwiseParallel()})
        for module in (model.first, model.second):
            fully_shard(module, mesh=mesh["dp"])

    return _as_wrapped(wrap)


LAYOUTS: dict[str, Callable[[], dict[str, Lay]]] = {
    f.__name__: f for f in (rows, columns, replicated, hybrid, both_ways, mixed, fully_sharded, in_two_dimensions)
}


# ---- rules ------------------------------------------------------------------------------------------------------

Make = Callable[..., Any]


def _over_adamw(params: Any, **options: Any) -> Layerwise:
    return Layerwise(torch.optim.AdamW(params, lr=0.1, eps=1e-6), **options)


def _over_sgd(params: Any, **options: Any) -> Layerwise:
    return Layerwise(torch.optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.9, weight_decay=0.01), **options)


RULES: dict[str, tuple[Make, dict[str, Any], int]] = {
    "LAMB": (LAMB, {}, 1),
    "LAMB clipped": (LAMB, {"max_grad_norm": 0.5, "eps": 1e-2}, 2),
    "LAMB norm 1": (LAMB, {"norm": 1}, 1),
    "LAMB norm inf": (LAMB, {"norm": "inf", "phi_bounds": (0.5, 3.0)}, 1),
    "LAMB not adapted": (LAMB, {"adapt": False}, 0),
    "LANS": (LANS, {}, 2),
    "LARS": (LARS, {"lr": 0.1, "max_grad_norm": 0.5, "weight_decay": 0.1}, 2),
    "LARS 2017": (LARS, {"lr": 0.1, "rule": "2017", "nesterov": True}, 1),
    "Layerwise AdamW": (_over_adamw, {"max_grad_norm": 0.5}, 2),
    "Layerwise SGD": (_over_sgd, {}, 1),
}
"""Name -> what builds it, options, and how many all-reduces a step makes for each mesh."""
BACKENDS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def backends_of(rule: str) -> list[str]:
    """Return the backends that a rule has."""
    return [name for name in BACKENDS if name != "fused" or not rule.startswith("Layerwise")]


def groups(params: Mapping[str, Tensor], *, stacked: bool) -> list[dict[str, Any]]:
    """Return one group of named parameters, or one for each that is stacked."""
    named = [(name, p) for name, p in params.items() if not stacked or name not in STACKED]
    found: list[dict[str, Any]] = [{"params": named}]
    if stacked:
        found += [{"params": [(name, params[name])], "stacked": blocks} for name, blocks in STACKED.items()]
    return found


def stepped(optimizer: Any, params: Mapping[str, Tensor], lays: Mapping[str, Lay], steps: range = range(STEPS)) -> None:
    """Take steps with the same whole gradients in every process, however they lie."""
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        for name, gradient in gradients(step).items():
            params[name].grad = lays[name](gradient).to(params[name].dtype)
        optimizer.step()


def ending(
    rule: str, backend: str, lays: Mapping[str, Lay], dtype: torch.dtype = torch.float64, *, stacked: bool = False
) -> dict[str, Tensors]:
    """Return where weights end and the ratios of the last step, after training from the same start."""
    make, options, _ = RULES[rule]
    params: Tensors = {name: nn.Parameter(lays[name](a)) for name, a in weights(dtype).items()}
    optimizer = make(groups(params, stacked=stacked), **options, **BACKENDS[backend])
    stepped(optimizer, params, lays)
    return {
        "weights": {name: _gathered(p) for name, p in params.items()},
        "ratios": {name: ratio.clone() for name, ratio in optimizer.trust_ratios().items()},
        "norm": {"all": optimizer.grad_norm()},
    }


def _gathered(p: Any) -> Tensor:
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()


WHOLE = dict.fromkeys(SHAPES, _whole)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the elements of each all-reduce; any other exchange fails."""
    sizes: list[int] = []
    genuine = dist.all_reduce

    def count(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return genuine(tensor, *args, **kwargs)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("another exchange")

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(dist, "all_reduce", count))
        for name in ("all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor", "barrier"):
            stack.enter_context(mock.patch.object(dist, name, refuse))
        yield sizes


# ---- scenarios --------------------------------------------------------------------------------------------------


def every_rule() -> dict[str, Any]:
    """Each rule by each backend on each layout, in float64."""
    return {
        f"{layout}, {rule}, {backend}": ending(rule, backend, lay())
        for layout, lay in LAYOUTS.items()
        for rule in RULES
        for backend in backends_of(rule)
    }


def single_precision() -> dict[str, Any]:
    """Weights and gradients in float32, and in bfloat16 with masters."""
    return {
        f"{layout}, {rule}, {backend}": ending(rule, backend, LAYOUTS[layout](), torch.float32)
        for layout in ("fully_sharded", "mixed", "in_two_dimensions")
        for rule in ("LAMB", "LANS", "LARS")
        for backend in BACKENDS
    }


def stacked_blocks() -> dict[str, Any]:
    """Layers within parameters, cut by the shards wherever."""
    return {
        f"{layout}, {rule}, {backend}": ending(rule, backend, LAYOUTS[layout](), stacked=True)
        for layout in ("rows", "columns", "both_ways", "mixed", "fully_sharded")
        for rule in ("LAMB", "LANS", "Layerwise AdamW")
        for backend in backends_of(rule)
    }


def exchanges() -> dict[str, Any]:
    """How many all-reduces a step makes, and of how many numbers."""
    found: dict[str, Any] = {}
    for layout, lay in LAYOUTS.items():
        lays = lay()
        for rule, (make, options, _) in RULES.items():
            params: Tensors = {name: nn.Parameter(lays[name](a)) for name, a in weights().items()}
            optimizer = make(list(params.items()), **options)
            stepped(optimizer, params, lays, range(1))
            for name, gradient in gradients(1).items():
                params[name].grad = lays[name](gradient)
            with counted() as sizes:
                optimizer.step()
            found[f"{layout}, {rule}"] = sizes
    return found


def partial_gradients() -> dict[str, Any]:
    """Gradients that are still to be summed, as tensor parallelism leaves them for what every process has."""
    mesh, _ = _meshes()
    share = (1 + dist.get_rank()) * 2 / (dist.get_world_size() * (dist.get_world_size() + 1))

    def lay_weights(a: Tensor) -> Tensor:
        return distribute_tensor(a.clone(), mesh, [Replicate()], src_data_rank=None)

    params: Tensors = {name: nn.Parameter(lay_weights(a)) for name, a in weights().items()}
    optimizer = LAMB(params.items(), max_grad_norm=0.5)
    lays = dict.fromkeys(SHAPES, lambda a: DTensor.from_local(a * share, mesh, [Partial()], run_check=False))
    stepped(optimizer, params, lays)
    return {"weights": {name: _gathered(p) for name, p in params.items()}, "norm": float(optimizer.grad_norm())}


def local_norms() -> dict[str, Any]:
    """The mistake of all peers: the norm of what lies here taken for that of the layer."""
    with mock.patch.object(shards, "complete", lambda parts, largest=False: [part.values for part in parts]):
        from largebatch.optim import calls

        with mock.patch.object(calls, "complete", shards.complete):
            return ending("LAMB", "plain", rows())


def skipped() -> dict[str, Any]:
    """Something not finite on one process skips the step on all."""
    found: dict[str, Any] = {}
    for layout in ("rows", "hybrid", "in_two_dimensions"):
        lays = LAYOUTS[layout]()
        params: Tensors = {name: nn.Parameter(lays[name](a)) for name, a in weights(torch.float32).items()}
        optimizer = LAMB(params.items(), lr=0.1, max_grad_norm=0.5, capturable=True)
        moved = []
        for bad in (False, True):
            before = {name: _gathered(p) for name, p in params.items()}
            for name, gradient in gradients(0).items():
                params[name].grad = lays[name](gradient).to(torch.float32)
            here = bad and dist.get_rank() == dist.get_world_size() - 1
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(float(here))
            optimizer.step()
            moved.append(any(not torch.equal(_gathered(p), before[name]) for name, p in params.items()))
        found[layout] = {"moved": moved, "count": float(optimizer.state[params["odd"]]["step"])}
    return found


def masters() -> dict[str, Any]:
    """bfloat16 weights with float32 masters in shards; states are DTensors that lie like their parameters."""
    found: dict[str, Any] = {}
    for rule in ("LAMB", "Layerwise AdamW"):
        make = RULES[rule][0]
        for layout, lays in (("rows", rows()), ("whole", WHOLE)):
            params: Tensors = {name: nn.Parameter(lays[name](a)) for name, a in weights(torch.bfloat16).items()}
            optimizer = make(params.items(), master_weights=True)
            optimizer.init_state()
            stepped(optimizer, params, lays)
            states = {name: optimizer.state[p] for name, p in params.items()}
            found[f"{rule}, {layout}"] = {
                name: {key: _gathered(a) for key, a in state.items() if a.ndim} for name, state in states.items()
            }
            if layout == "rows":
                lying = [a.placements for state in states.values() for a in state.values() if a.ndim]
                found[f"{rule}, lies"] = all(placements == (Shard(0),) for placements in lying)
    return found


def reloaded() -> dict[str, Any]:
    """A state dict that goes on in another layout, by way of whole tensors."""
    lays, others = rows(), columns()
    params: Tensors = {name: nn.Parameter(lays[name](a)) for name, a in weights().items()}
    optimizer = LAMB(params.items())
    stepped(optimizer, params, lays, range(10))
    whole = optimizer.state_dict()
    whole["state"] = {
        number: {key: _gathered(a) if a.ndim else a for key, a in state.items()}
        for number, state in whole["state"].items()
    }
    twins: Tensors = {name: nn.Parameter(others[name](_gathered(p))) for name, p in params.items()}
    other = LAMB(twins.items())
    other.load_state_dict(whole)
    stepped(other, twins, others, range(10, STEPS))
    return {"weights": {name: _gathered(p) for name, p in twins.items()}}


def refused() -> dict[str, Any]:
    """What cannot be had is said."""
    mesh, _ = _meshes()

    def told(action: Callable[[], Any]) -> str:
        try:
            action()
        except (ValueError, NotImplementedError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    still_a_sum = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Partial()], run_check=False))
    x = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)], src_data_rank=None))
    twice = nn.Parameter(in_two_dimensions()["first.weight"](weights()["first.weight"]))
    plain = nn.Parameter(torch.ones(4))
    optimizer, in_shards = LAMB([("w", plain)]), LAMB([("w", x)], lr=0.5)
    in_shards.init_state()
    over = Layerwise(torch.optim.AdamW([("w", plain)]))
    rate = distribute_tensor(torch.tensor(0.1), mesh, [Replicate()], src_data_rank=None)
    return {
        "partial": told(lambda: LAMB([("w", still_a_sum)])),
        "differentiable": told(lambda: LAMB([("w", x)], differentiable=True)),
        "cut twice": told(lambda: LAMB([("w", twice)], stacked=(0, 2))),
        "state in shards": told(lambda: optimizer.load_state_dict(in_shards.state_dict())),
        "state in shards, layerwise": told(lambda: over.load_state_dict(in_shards.state_dict())),
        "left alone": optimizer.param_groups[0]["lr"] == LAMB([plain]).param_groups[0]["lr"] and not optimizer.state,
        "rate": told(lambda: LAMB([("w", x)], lr=rate)),
    }


def without_gradients() -> dict[str, Any]:
    """A step in which nothing has a gradient, and one in which one parameter has."""
    lays = rows()
    params: Tensors = {name: nn.Parameter(lays[name](a)) for name, a in weights().items()}
    optimizer = LAMB(params.items(), max_grad_norm=0.5)
    optimizer.step()
    params["small"].grad = lays["small"](gradients(0)["small"])
    optimizer.step()
    return {"ratios": optimizer.trust_ratios(), "weights": {name: _gathered(p) for name, p in params.items()}}


def watched() -> dict[str, Any]:
    """The relative steps that `StepMonitor` sees."""
    found = {}
    for layout, lays in (("rows", rows()), ("hybrid", hybrid()), ("whole", WHOLE)):
        params: Tensors = {name: nn.Parameter(lays[name](a)) for name, a in weights().items()}
        optimizer = LAMB(params.items())
        monitor = StepMonitor(optimizer, max_relative_step=10.0)
        stepped(optimizer, params, lays, range(1))
        found[layout] = monitor.relative_steps
    return found


SCENARIOS = (
    every_rule,
    single_precision,
    stacked_blocks,
    exchanges,
    partial_gradients,
    local_norms,
    skipped,
    masters,
    reloaded,
    refused,
    without_gradients,
    watched,
)


def main(rank: int, world_size: int, folder: Path) -> None:
    """Run all scenarios as one rank."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    results = {scenario.__name__: scenario() for scenario in SCENARIOS}
    torch.save(results, folder / f"rank-{rank}.pt")
    leave_world()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
