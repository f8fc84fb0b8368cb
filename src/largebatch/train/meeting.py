"""Where the ranks of one start meet: a corner of their store that no earlier start has written to.

torchrun keeps its store when it starts ranks again, and in it what those before have written (torch 2.11 to 2.13). gloo
and NCCL then read the addresses of processes that are gone: "connection refused", at every further start. What differs
between two starts it does not tell: it counts those after a failure, but not those after a node has come or left. So
the first rank draws a name and hands it to each other rank that is there now:

    rank r     hello/r <- a word of its own;  waits for reply/WORD;  joined/NAME/r <- 1
    rank 0     answers the newest word of each r, until all have joined under its name
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

PATIENCE_SECONDS = 600


def meet(patience_seconds: float = PATIENCE_SECONDS) -> tuple[dist.Store, int, int]:
    """Return a store of this start alone, this process's rank, and how many there are, from torchrun's variables.

    Raises:
        RuntimeError: some ranks have not come in time.
    """
    store, rank, ranks = next(rendezvous("env://"))
    store.set_timeout(timedelta(seconds=patience_seconds))
    corner = dist.PrefixStore("largebatch", store)
    name = _lead(corner, ranks, patience_seconds) if rank == 0 else _follow(corner, rank)
    return dist.PrefixStore(name, store), rank, ranks


def _follow(store: dist.Store, rank: int) -> str:
    word = uuid.uuid4().hex
    store.set(f"hello/{rank}", word)
    name = store.get(f"reply/{word}").decode()
    store.set(f"joined/{name}/{rank}", "1")
    return name


def _lead(store: dist.Store, ranks: int, patience_seconds: float) -> str:
    name, answered = uuid.uuid4().hex, dict[int, bytes]()
    missing, deadline = set(range(1, ranks)), time.monotonic() + patience_seconds
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {', '.join(map(str, sorted(missing)))} of {ranks} have not come")
        for rank in sorted(missing):
            if store.check([f"joined/{name}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"hello/{rank}"]) and (word := store.get(f"hello/{rank}")) != answered.get(rank):
                store.set(f"reply/{word.decode()}", name)
                answered[rank] = word
        time.sleep(0.01)
    return name
