"""How ranks share a model: each has all of it (DDP), a part (FSDP2), or each node has all in parts (HSDP).

    ddp     gradients are averaged; weights and moments are on every rank
    fsdp    every rank keeps 1 / ranks of weights, gradients and moments, and gathers a block's weights to run it
    hsdp    the same within groups of ``shard_ranks`` ranks, whose gradients are then averaged with those of the others

The optimizer's norms are those of whole layers in all three. A model says what is gathered as one:

    blocks() -> list of lists of modules      those of a block run one after the other, all of them, in every pass
    recompute_activations()                   keep a block's input between passes and run it again
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from largebatch.errors import InputError
from largebatch.train.distributed import World
from largebatch.train.run import Compression, Sharding
from largebatch.train.step_statistics import buffers_kept


class SharedModel:
    """One rank's part of a model, and how its gradients meet those of the other ranks."""

    def __init__(
        self, model: nn.Module, world: World, sharding: Sharding, shard_ranks: int, compression: Compression
    ) -> None:
        """Cut the model into parts, where that is asked for and `check_sharding` allows; the optimizer comes after."""
        self.model, self._world, self._compression = model, world, compression
        self._replica: Any = None
        self._primed = False
        self.sharded = sharding != "ddp"
        if self.sharded:
            _shard_(model, world, sharding, shard_ranks, compression)

    def join(self) -> None:
        """Give all ranks the first one's weights and make ready for exchange, when the weights are final."""
        if self.sharded or self._world.ranks == 1:
            return
        device = self._world.device
        ids = [device.index] if device.type == "cuda" else None
        # A broadcast before each pass would undo what `step_statistics` gathers; `share_buffers` does it when needed.
        self._replica = DistributedDataParallel(
            self.model, device_ids=ids, gradient_as_bucket_view=True, **_no_broadcast()
        )
        if self._compression == "bf16":
            self._replica.register_comm_hook(None, _averaged_in_bf16)

    def leave(self) -> None:
        """Let go of what holds the process group.

        DDP's reducer does. If it goes last, the group is destroyed by a thread that holds the interpreter's lock and
        waits for a gloo thread that waits for the lock: a deadlock, in one of three exits under load with torch 2.13.
        """
        self._replica = None

    @property
    def runs(self) -> nn.Module:
        """What a pass of training is given as the model."""
        return self.model if self._replica is None else self._replica

    @contextmanager
    def exchanging(self, wanted: bool) -> Iterator[None]:
        """Let backward passes exchange gradients, or only add them up here."""
        if self.sharded:
            model: Any = self.model
            model.set_requires_gradient_sync(wanted)
            yield
        elif wanted or self._replica is None:
            yield
        else:
            with self._replica.no_sync():
                yield

    def prime(self, backward: Callable[[nn.Module], None]) -> None:
        """Let DDP settle its buckets in two discarded passes; once, and nothing for other ways.

        It orders them by the first backward pass that it sees; gloo then sums in another order than before, and a
        resumed run would differ in the last bits from one that never stopped.
        """
        if self._primed or self._replica is None:
            return
        self._primed = True
        with buffers_kept(self.model):
            for _ in range(2):
                backward(self._replica)

    def whole(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Return the model with all of its weights on the first rank; all ranks ask, the others get their part.

        Args:
            build: makes another of the same kind.
        """
        if not self.sharded:
            return self.model
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        found = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not self._world.first:
            return self.model
        model = build()
        model.load_state_dict(found)
        return model


def _averaged_in_bf16(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of gradients that are rounded before; PyTorch's own hook of this kind refuses gloo."""
    buffer = bucket.buffer()
    rounded = (buffer / dist.get_world_size()).to(torch.bfloat16)
    work: Any = dist.all_reduce(rounded, async_op=True)
    return work.get_future().then(lambda done: buffer.copy_(done.value()[0]))


def _no_broadcast() -> dict[str, Any]:
    """Return DDP's option by the name that it has in the installed PyTorch; another since 2.13."""
    known = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def check_sharding(sharding: Sharding, shard_ranks: int, compression: Compression, ranks: int) -> None:
    """Refuse ranks that cannot be shared out as asked, and an exchange that one process alone does not have.

    Raises:
        InputError: in one sentence.
    """
    if shard_ranks and sharding != "hsdp":
        raise InputError(f"shard_ranks is {shard_ranks}, with sharding {sharding} allowed is 0")
    if compression != "none" and not dist.is_initialized():
        raise InputError(
            f"gradient_compression is {compression}, which needs processes that torchrun has started; allowed is none"
        )
    if sharding == "ddp":
        return
    if not dist.is_initialized():
        raise InputError(f"sharding is {sharding}, which needs processes that torchrun has started; allowed is ddp")
    if sharding == "hsdp" and ranks % (own := _shard_ranks(shard_ranks, ranks)):
        raise InputError(f"shard_ranks is {own}, allowed is a number that divides the {ranks} ranks")


def _shard_ranks(shard_ranks: int, ranks: int) -> int:
    return shard_ranks or min(int(os.environ.get("LOCAL_WORLD_SIZE", ranks)), ranks)


def _shard_(model: nn.Module, world: World, sharding: Sharding, shard_ranks: int, compression: Compression) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = world.device.type
    if sharding == "fsdp":
        mesh = init_device_mesh(kind, (world.ranks,), mesh_dim_names=("shard",))
    else:
        own = _shard_ranks(shard_ranks, world.ranks)
        mesh = init_device_mesh(kind, (world.ranks // own, own), mesh_dim_names=("replicate", "shard"))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if compression == "bf16" else None)
    for p in model.parameters():
        p.data = p.data.contiguous()  # FSDP2 takes no other order; kernels of convolutions turn channels-last ones
    told: Any = getattr(model, "blocks", None)
    for block in [] if told is None else told():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def recompute_activations_(model: nn.Module) -> None:
    """Let a model keep little between forward and backward passes.

    Raises:
        InputError: it has no way to.
    """
    told: Any = getattr(model, "recompute_activations", None)
    if told is None:
        raise InputError("recompute is True, but this network has no blocks that can be run again; allowed is False")
    told()
