"""What two processes do in the tests of norms over processes; each scenario's results go into one file a rank.

Started as a program: RANK WORLD_SIZE FOLDER.
"""

import copy
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from largebatch.optim import LAMB, LANS, LARS, Layerwise, layer_groups

SHAPES = ((6, 4), (4,), (3, 5), (2, 2, 2), (7,))
STEPS = 6


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """Return the same weights in every process."""
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def set_gradients(made: list[nn.Parameter], step: int) -> None:
    """Give each parameter the same gradient in every process, as after an all-reduce."""
    generator = torch.Generator().manual_seed(100 + step)
    for i, p in enumerate(made):
        p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * 2.0**-i).to(p.dtype)


def run(optimizer: Any, made: list[nn.Parameter], steps: int = STEPS) -> list[torch.Tensor]:
    """Return where the weights end."""
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (step + 1)
        set_gradients(made, step)
        optimizer.step()
    return [p.detach().clone() for p in made]


RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "LAMB": (LAMB, {"lr": 0.1}),
    "LAMB clipped": (LAMB, {"lr": 0.1, "max_grad_norm": 0.5, "eps": 1e-2}),
    "LANS": (LANS, {"lr": 0.1}),
    "LARS": (LARS, {"lr": 0.1}),
    "LARS clipped": (LARS, {"lr": 0.1, "max_grad_norm": 0.5, "weight_decay": 0.1}),
}


def zero_redundancy(rank: int) -> dict[str, Any]:
    """ZeroRedundancyOptimizer over each rule, the clipped ones told of their process group."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    found: dict[str, Any] = {}
    for name, (kind, options) in RULES.items():
        given = {**options, "norm_process_group": dist.group.WORLD} if "clipped" in name else options
        made = parameters()
        optimizer = ZeroRedundancyOptimizer(made, optimizer_class=kind, **given)
        found[name] = run(optimizer, made)
        local = optimizer.optim
        found[f"{name}: ratios"] = list(local.trust_ratios())
        if "clipped" in name:
            found[f"{name}: norm"] = float(local.grad_norm())
        optimizer.consolidate_state_dict(to=0)
        if rank == 0:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            found[f"{name}: bytes"] = len(file.getvalue())
    return found


def resumed(rank: int) -> dict[str, Any]:
    """A ZeroRedundancyOptimizer that is saved, loaded into another, and goes on."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    options: dict[str, Any] = {"lr": 0.1, "max_grad_norm": 0.5, "norm_process_group": dist.group.WORLD}
    made = parameters()
    optimizer = ZeroRedundancyOptimizer(made, optimizer_class=LAMB, **options)
    run(optimizer, made, 3)
    optimizer.consolidate_state_dict(to=0)
    box: list[Any] = [copy.deepcopy(optimizer.state_dict()) if rank == 0 else None]
    dist.broadcast_object_list(box, src=0)
    twins = [nn.Parameter(p.detach().clone()) for p in made]
    other = ZeroRedundancyOptimizer(twins, optimizer_class=LAMB, **options)
    other.load_state_dict(box[0])
    return {
        "one": run(optimizer, made, 3),
        "other": run(other, twins, 3),
        "keeps its process group": other.optim._shared.process_group is dist.group.WORLD,
    }


def refused(rank: int) -> dict[str, Any]:
    """Clipping in ZeroRedundancyOptimizer without the process group."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    found: dict[str, Any] = {}
    try:
        ZeroRedundancyOptimizer(parameters(), optimizer_class=LAMB, lr=0.1, max_grad_norm=0.5)
    except ValueError as error:
        found["told"] = str(error)
    LAMB(parameters(), max_grad_norm=0.5)  # elsewhere, a process group being there or not, it is no mistake
    return found


def few_parameters(rank: int) -> dict[str, Any]:
    """One process has no parameter at all, and takes part in the norm all the same."""
    made = parameters()[:1]
    own = {"params": made if rank == 0 else []}
    optimizer = LAMB([own], lr=0.1, max_grad_norm=0.5, norm_process_group=dist.group.WORLD)
    for step in range(2):
        set_gradients(made, step)
        optimizer.step()
    return {"norm": float(optimizer.grad_norm()), "expected": float(torch.linalg.vector_norm(made[0].grad))}


def skipped(rank: int) -> dict[str, Any]:
    """Something not finite in one process skips the step in both."""
    found: dict[str, Any] = {}
    for clip in (None, 0.5):
        made = parameters()[rank :: dist.get_world_size()]
        options: dict[str, Any] = {"max_grad_norm": clip, "norm_process_group": dist.group.WORLD}
        optimizer = LAMB(made, lr=0.1, capturable=True, **options)
        moved = []
        for infinite_rank in (None, 1):
            before = [p.detach().clone() for p in made]
            set_gradients(made, 0)
            if infinite_rank == rank:
                made[0].grad = torch.full_like(made[0], torch.inf)
            optimizer.grad_scale = torch.tensor(1.0)
            optimizer.found_inf = torch.tensor(float(infinite_rank == rank))
            optimizer.step()
            moved.append(not all(torch.equal(p, old) for p, old in zip(made, before, strict=True)))
        found[f"moved, clip {clip}"] = moved
        found[f"count, clip {clip}"] = float(optimizer.state[made[0]]["step"])
    return found


def general(rank: int) -> dict[str, Any]:
    """The general strategy, each process with its own parameters, clipped by the norm of all."""
    everything = parameters()
    made = everything[rank :: dist.get_world_size()]
    base = torch.optim.AdamW(made, lr=0.1, eps=1e-2)
    optimizer = Layerwise(base, max_grad_norm=0.5, norm_process_group=dist.group.WORLD)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (step + 1)
        set_gradients(everything, step)
        optimizer.step()
    return {"end": [p.detach() for p in made]}


def named_groups(rank: int) -> dict[str, Any]:
    """ZeroRedundancyOptimizer over the groups that `layer_groups` makes, which have names."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    found: dict[str, Any] = {}
    for kind in (LAMB, LANS):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
        optimizer = ZeroRedundancyOptimizer(layer_groups(model), optimizer_class=kind, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3, dtype=torch.float64)).pow(2).sum().backward()
            optimizer.step()
        found[kind.__name__] = [p.detach() for p in model.parameters()]
        found[f"{kind.__name__}: ratios"] = list(optimizer.optim.trust_ratios())
    return found


def clipped_later(rank: int) -> dict[str, Any]:
    """A threshold that is written into the groups after the construction."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    made = parameters()
    optimizer = ZeroRedundancyOptimizer(made, optimizer_class=LAMB, lr=0.1)
    optimizer.param_groups[0]["max_grad_norm"] = 0.5
    set_gradients(made, 0)
    try:
        optimizer.step()
    except ValueError as error:
        return {"told": str(error)}
    return {}


def general_skipped(rank: int) -> dict[str, Any]:
    """The general strategy over a fused base: something not finite in one process skips the base's step in both."""
    made = parameters(torch.float32)[rank :: dist.get_world_size()]
    base = torch.optim.AdamW(made, lr=0.1, fused=True)
    optimizer = Layerwise(base, norm_process_group=dist.group.WORLD)
    moved = []
    for infinite_rank in (None, 1):
        before = [p.detach().clone() for p in made]
        set_gradients(made, 0)
        if infinite_rank == rank:
            made[0].grad = torch.full_like(made[0], torch.inf)
        optimizer.grad_scale = torch.tensor(1.0)
        optimizer.found_inf = torch.tensor(float(infinite_rank == rank))
        optimizer.step()
        moved.append(not all(torch.equal(p, old) for p, old in zip(made, before, strict=True)))
    return {"moved": moved, "count": float(base.state[made[0]]["step"])}


SCENARIOS = (
    named_groups,
    clipped_later,
    general_skipped,
    zero_redundancy,
    resumed,
    refused,
    few_parameters,
    skipped,
    general,
)


def main(rank: int, world_size: int, folder: Path) -> None:
    """Run all scenarios as one rank."""
    # ZeroRedundancyOptimizer warns of a future in which it is gone.
    warnings.filterwarnings("ignore", category=FutureWarning)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    results = {scenario.__name__: scenario(rank) for scenario in SCENARIOS}
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
