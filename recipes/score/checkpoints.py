"""The checkpoints of `curate score`: whether the prompts of a run mean the same to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from curate.errors import UsageError
from curate.run.run import Run
from curate.run.tables import ITEMS
from probes.models.chat import plain_ids, run_tokenizer
from probes.models.checkpoints import (
    Checkpoint,
    OtherTokenizer,
    find_checkpoint,
    has_tokenizer,
    is_adapter,
    resolve_checkpoint,
)
from probes.models.files import ModelFiles
from probes.models.load import load_tokenizer
from probes.models.probed import probed_model

# Prompts that are encoded anew where there is no tokenizer to compare with.
_PROMPTS = 64


@dataclass(frozen=True)
class ScoredCheckpoint:
    """A checkpoint that the run's prompts can be given to.

    Attributes:
        name: as it was named.
        loading: its files, and how it is loaded.
        notes: what a reader has to know of it.
    """

    name: str
    loading: Checkpoint
    notes: tuple[str, ...]

    @property
    def weight_hash(self) -> str:
        """Of the weights, and for an adapter those below it."""
        return self.loading.files.weight_hash

    @property
    def is_adapter(self) -> bool:
        """Whether it is loaded on the run's model."""
        return self.loading.base is not None


def open_checkpoints(run: Run, names: tuple[str, ...], base: str) -> list[ScoredCheckpoint]:
    """Find checkpoints, and see that the token ids of the run's prompts mean the same to them.

    That is: every token of the probed model's vocabulary has the same id. Where that model is no
    longer on this machine, the run's prompts are encoded anew and must give the run's ids.

    Args:
        run: whose prompts they get.
        names: of the checkpoints.
        base: where the probed model lies; "" where it was.

    Raises:
        UsageError: one is not there, cannot be read safely, or has another tokenizer.
    """
    config = run.config
    why_not = ""
    initial: ModelFiles | None = None
    try:
        initial = probed_model(run.path, config, base, flag="--base")
    except UsageError as error:
        if base:
            raise
        why_not = str(error)
    found = []
    for name in names:
        try:
            if initial is None:
                loading = _without_initial(run, name, why_not)
            else:
                loading = find_checkpoint(name, initial, trust_remote_code=config.trust_remote_code)
        except OtherTokenizer as error:
            raise UsageError(
                f"{error}; the run's prompts are token ids, so probe it by itself (curate tag "
                f"{config.dataset} --model {name} with its own --run-dir) and see what moved with "
                "`curate compare`"
            ) from error
        found.append(ScoredCheckpoint(name, loading, tuple(_notes(run, name, loading, initial))))
    return found


def _without_initial(run: Run, name: str, why_not: str) -> Checkpoint:
    """A whole model whose tokenizer encodes the run's prompts as they were."""
    config = run.config
    # An adapter's hash is of two models; here it is only told apart.
    files = resolve_checkpoint(name, ModelFiles("", run.path, None, None, ""))
    if is_adapter(files):
        raise UsageError(f"{name} is an adapter, which is loaded on the run's model: {why_not}")
    if not has_tokenizer(files):
        raise UsageError(
            f"{name} has no tokenizer to compare with that of the run's model: {why_not}"
        )
    tokenizer = load_tokenizer(files, trust_remote_code=config.trust_remote_code)
    prompts = run.columns(ITEMS, "prompt", "prompt_token_ids").slice(0, _PROMPTS).to_pylist()
    for row in prompts:
        text, ids = row["prompt"], list(row["prompt_token_ids"])
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids not in (bare, plain_ids(tokenizer, text)):
            raise OtherTokenizer(
                f"checkpoint {name} encodes the run's prompts as other tokens than they were "
                f"probed as, such as {text[:40]!r}"
            )
    return Checkpoint(files, tokenizer)


def _notes(run: Run, name: str, loading: Checkpoint, initial: ModelFiles | None) -> Iterator[str]:
    if loading.files.weight_hash == run.weight_hash:
        yield f"{name} is the model that the run probed: these are outcomes of no training"
    if initial is None or loading.base is not None or run.config.chat_template:
        return
    ours = run_tokenizer(initial, run.config)
    rendered = [_rendered(each, run) for each in (ours, loading.tokenizer)]
    if None not in rendered and rendered[0] != rendered[1]:
        yield (
            f"the chat template of {name} renders prompts otherwise than the run did; it is asked "
            "with the run's prompts"
        )


def _rendered(tokenizer: Any, run: Run) -> str | None:
    """A question as a tokenizer's chat template renders it; None where it has none."""
    import jinja2

    turn = [{"role": "user", "content": "x"}]
    try:
        return str(
            tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, tokenize=False, **run.config.chat_variables
            )
        )
    except (jinja2.TemplateError, ValueError, KeyError, TypeError):
        return None
