"""How many tokens a gradient pass may have before memory runs out.

A pass keeps what the backward pass needs of every block, megabytes a token. Where that does not
fit, blocks are recomputed: only their inputs are kept, and each is run once more when the backward
pass comes to it (Chen et al. 2016), for about a third more time and a tenth of the memory. What is
counted here are estimates; where memory runs out all the same, `GradientProbe` makes its passes
smaller, and larger again when all goes well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from probes.gradients.targets import Target
from probes.models.load import Policy
from probes.models.modules import fused_experts, linear_layers

# More tokens keep no accelerator busier.
_MOST_TOKENS = 32 * 1024
# Experts of a token, where a model's configuration has another word for it.
_CHOSEN = 8
# Successful passes after which a limit that was lowered is doubled again.
_PASSES_TO_GROW = 16


@dataclass
class Limit:
    """A number of tokens that is lowered where memory runs out, and grows back.

    Attributes:
        tokens: at most so many, now.
        most: at most so many, ever.
    """

    tokens: int
    most: int
    _passes: int = 0

    def lower(self, tokens: int) -> None:
        """Have at most so many from now on."""
        self.tokens = max(1, min(self.tokens, tokens))
        self._passes = 0

    def went_well(self) -> None:
        """Count a pass that had room; after some of them the limit is doubled."""
        self._passes += 1
        if self.tokens < self.most and self._passes >= _PASSES_TO_GROW:
            self.tokens, self._passes = min(self.most, 2 * self.tokens), 0


def kept_bytes(policy: Policy) -> int:
    """Bytes that autograd keeps of one token, of all blocks, about: a fifth too many for most.

    Inputs of projections and norms, gates, and attention.
    """
    config = policy.model.config.get_text_config()
    return int(config.num_hidden_layers) * _block_bytes(policy)


def recomputed_bytes(policy: Policy) -> int:
    """Bytes of one token where blocks are recomputed: the inputs of all, and the inside of one."""
    config = policy.model.config.get_text_config()
    inputs = int(config.num_hidden_layers) * int(config.hidden_size) * policy.dtype.itemsize
    return inputs + 2 * _block_bytes(policy)


def _block_bytes(policy: Policy) -> int:
    config = policy.model.config.get_text_config()
    hidden = int(config.hidden_size)
    inner = max(_inner(policy, hidden), _inner_of_experts(policy, hidden))
    return (8 * hidden + 4 * inner) * policy.dtype.itemsize


def _inner(policy: Policy, hidden: int) -> int:
    """Width inside a block's dense layers."""
    found = getattr(policy.model.config.get_text_config(), "intermediate_size", None)
    return found if isinstance(found, int) else 4 * hidden


def _inner_of_experts(policy: Policy, hidden: int) -> int:
    """Width inside all experts that a token goes to, those that every token goes to among them."""
    config = policy.model.config.get_text_config()
    layers = linear_layers(policy.model)
    widest = 0
    for name, experts in fused_experts(policy.model).items():
        chosen = getattr(config, "num_experts_per_tok", None)
        chosen = chosen if isinstance(chosen, int) else min(_CHOSEN, experts.count)
        beside = f"{name.rpartition('.')[0]}."
        shared: int = sum(
            module.in_features
            for other, module in layers.items()
            if other.startswith(beside)
            and isinstance(module, torch.nn.Linear)
            and module.out_features == hidden != module.in_features
        )
        widest = max(widest, chosen * experts.matrix(experts.down).shape[2] + shared)
    return widest


def adapter_bytes(targets: Iterable[Target], rank: int, policy: Policy) -> int:
    """Bytes of all A, and of signs and places of the sketch, which are made in the first pass.

    Of experts, which have an adapter each, they are some percent of the weights.
    """
    # A CPU keeps signs, a GPU the coordinates that they stand at too.
    of_sketch = 4 if policy.device.type == "cpu" else 8
    bytes_of = 0
    for target in targets:
        fan_out, fan_in = target.matrix.shape[-2:]
        experts = target.experts.count if target.experts else 1
        bytes_of += experts * rank * (fan_in * policy.dtype.itemsize + fan_out * of_sketch)
    return bytes_of


def tokens_of_a_batch(policy: Policy, taken: int = 0) -> int:
    """Padded tokens of a pass of several rollouts.

    What half the free memory of a GPU keeps; on a CPU as many as need a third of the memory of
    the weights, about: from some 130 tokens on it computes most of the time and waits little for
    weights.
    """
    if policy.device.type == "cpu":
        weights: int = sum(parameter.numel() for parameter in policy.model.parameters())
        of_weights = weights * policy.dtype.itemsize // 3 // kept_bytes(policy)
        return min(2048, max(128, of_weights))
    return min(_MOST_TOKENS, tokens_kept_whole(policy, taken))


def tokens_kept_whole(policy: Policy, taken: int = 0) -> int:
    """Tokens above which blocks are recomputed: what half of the free memory keeps.

    Args:
        policy: its model is loaded.
        taken: bytes of it that something else will take.
    """
    # Of several GPUs each has its share of the blocks, and of what they keep.
    devices = {parameter.device for parameter in policy.model.parameters()}
    free = min(map(free_bytes, devices)) * len(devices)
    return max(256, (free - taken) // 2 // kept_bytes(policy))


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that are free for new tensors."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch holds of the card and does not use is free to it.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(available.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
