"""Several processes that train one model, each on its share of every batch.

Sums are added up over the processes, and means are taken afterwards: so the gradient is that of
the whole batch, however many processes share it and however unequal the shares are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from wosac_toolkit.errors import WosacError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """Which of the processes that train together is this one.

    Attributes:
        rank: its number, from 0; 0 writes the files.
        size: how many there are.
        device: where it computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The part of `items` that is this process's to do."""
        return items[self.rank :: self.size]


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that `torchrun` has started; alone if it has not.

    Args:
        device: where to compute, such as `cpu` or `cuda:1`; by default the GPU of this process's
            number if there is one. GPUs talk by NCCL, CPUs by Gloo.

    Raises:
        WosacError: there is no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Ranks(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str | None, local_rank: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        what = f"cannot compute on {name!r}: {str(error).splitlines()[0]}"
        raise WosacError(what, mend="try --device cpu") from None
    return device


def add_up(ranks: Ranks, tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by their sums over the processes, in one message."""
    if ranks.size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    first = 0
    for tensor in tensors:
        tensor.copy_(flat[first : first + tensor.numel()].view_as(tensor))
        first += tensor.numel()


def add_up_gradients(ranks: Ranks, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients, summed over the processes, in the order of the parameters.

    A parameter that no scene of any process reached has a gradient of zeros rather than none, so
    that the optimizer treats it alike whichever process saw which scene.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    add_up(ranks, gradients)
    return gradients


def gathered(ranks: Ranks, item: Item) -> list[Item]:
    """What each process has, for all of them, by rank. Small things only: they are pickled."""
    if ranks.size == 1:
        return [item]
    items: list[Any] = [None] * ranks.size
    dist.all_gather_object(items, item)
    return items


def wait_for_all(ranks: Ranks) -> None:
    """Go on when every process has come here."""
    if ranks.size > 1:
        dist.barrier()
