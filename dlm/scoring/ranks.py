"""Several processes that share the windows of a split: `torchrun --nproc-per-node N -m dlm.evaluate ...`.

Every process keeps all results, so that all take the same decisions; the first one writes and prints.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, mine: list[Any]) -> list[Any]:
        """The lists of all processes, one after another."""
        if self.world == 1:
            return mine
        lists: list[Any] = [None] * self.world
        dist.all_gather_object(lists, mine)
        return [item for part in lists for item in part]

    def share(self, value: Any) -> Any:
        """What the first process has."""
        return self.gather([value])[0]


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun has started, connected for as long as this lasts; this one alone otherwise."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo")  # results are small and lie in main memory
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
