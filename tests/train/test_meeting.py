"""Ranks of one start meet in a store that remembers earlier ones."""

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from largebatch.train import meeting


def _start(store: dist.Store, ranks: int, late: float = 0.0) -> list[str]:
    """Return the name under which each rank of one start meets."""
    found = [""] * ranks

    def come(rank: int) -> None:
        if rank:
            time.sleep(late)
            found[rank] = meeting._follow(store, rank)
        else:
            found[0] = meeting._lead(store, ranks, 20.0)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_each_start_has_a_name_of_its_own_whatever_its_ranks() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    # The first rank is the first to come, and finds what ranks that are gone have said.
    names = [_start(store, ranks, late=0.2) for ranks in (4, 4, 2, 3)]
    assert all(len(set(own)) == 1 for own in names)
    assert len({own[0] for own in names}) == 4


def test_ranks_that_do_not_come_are_named() -> None:
    store = dist.HashStore()
    with pytest.raises(RuntimeError, match="ranks 1, 2 of 3 have not come"):
        meeting._lead(store, 3, 0.1)


def test_one_rank_meets_nobody() -> None:
    assert meeting._lead(dist.HashStore(), 1, 0.0)
