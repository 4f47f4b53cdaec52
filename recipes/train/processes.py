"""The processes that train together under `accelerate launch`, and what they tell each other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

# Rank 0 exports and writes alone, through main memory, while the others wait in a collective: for
# a 7B with every checkpoint kept half an hour and more. NCCL's own limit is 10 minutes.
COLLECTIVES = timedelta(hours=2)

_Told = TypeVar("_Told")


def process_state() -> Any:
    """Which of the processes of `accelerate launch` this is, and how many there are."""
    # Without the hint two processes without a GPU would take themselves for one each.
    # The first call makes the process group, whose limit of time holds from then on.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=COLLECTIVES)


def gathered(told: _Told) -> list[_Told]:
    """What each process tells, in their order; every process must call it, and none goes on before.

    What a process reads from its own GPU may differ, and processes that decide otherwise by it
    would wait for each other for ever.
    """
    process_state()
    every: list[_Told] = gather_object([told])
    return every
