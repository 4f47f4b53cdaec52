"""Semantic similarity of prompts, the baseline that gradient similarity has to beat.

An item's embedding is the initial policy's last hidden layer, averaged over the prompt's tokens,
less the mean over all items: a language model's hidden states share one large direction that would
make any two prompts look alike (Mu and Viswanath 2018). A hard item's similarity is its mean cosine
to the 5 nearest easy items. That is the baseline's counterpart of the gradient similarity, which
too looks at the nearest easy items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from curate.errors import RunError, UsageError
from curate.files import atomic_writer
from curate.progress import Progress
from curate.run.folder import no_policy
from curate.run.names import EMBEDDINGS
from curate.run.run import Run
from curate.run.tables import EMBEDDING_INDEX, ITEMS
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy

NEIGHBOURS = 5
# Tokens of prompts in one pass, padding included.
_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
# Hard items whose similarities to all easy items are held at once.
_ITEMS_AT_ONCE = 1024


def prompt_embeddings(run: Run) -> NDArray[np.float32]:
    """Return the embeddings of a run's prompts, shape (items, hidden), computed once.

    They are kept in `validation/prompt_embeddings.npy`; `prompt_embeddings.parquet` says which row
    is whose.

    Raises:
        UsageError: the run's model is gone, or is another by now.
        RunError: the disk is full, or files of the run are damaged.
    """
    array = run.path / EMBEDDINGS
    kept = _kept(run)
    if kept is not None:
        return kept
    config = run.config
    if not config.has_policy:
        raise UsageError(no_policy(run.path))
    files = resolve_model(config.model)
    if files.weight_hash != run.weight_hash:
        raise UsageError(f"{config.model} is not the model that {run.path} was made with")
    policy = load_policy(files, trust_remote_code=config.trust_remote_code)
    prompts = run.columns(ITEMS, "prompt_token_ids")["prompt_token_ids"]
    embeddings = embed_prompts(policy, prompts.to_pylist())
    # The index comes last: where it is, the array is whole.
    EMBEDDING_INDEX.path(run.path).unlink(missing_ok=True)
    try:
        with atomic_writer(array) as file:
            np.save(file, embeddings, allow_pickle=False)
    except OSError as error:
        raise RunError(f"cannot write {array}: {error.strerror or error}") from error
    rows = np.arange(len(run.ids), dtype=np.int64)
    EMBEDDING_INDEX.write(run.path, pa.table({"item_id": run.ids, "embedding_row": rows}))
    return embeddings


def _kept(run: Run) -> NDArray[np.float32] | None:
    """What an earlier command computed, if it is whole and of these items."""
    if not EMBEDDING_INDEX.is_in(run.path):
        return None
    try:
        embeddings = np.load(run.path / EMBEDDINGS, allow_pickle=False)
        # Written in the order of the items, so that no row has to be looked up.
        index = EMBEDDING_INDEX.read(run.path, "item_id")["item_id"].combine_chunks()
    except (OSError, ValueError, EOFError, RunError):
        return None
    fits = embeddings.dtype == np.float32 and embeddings.ndim == 2
    return embeddings if index.equals(run.ids) and fits and len(embeddings) == len(index) else None


def embed_prompts(
    policy: Policy, prompts: Sequence[Sequence[int]], *, batch_tokens: int | None = None
) -> NDArray[np.float32]:
    """Average the last hidden layer over each prompt's tokens.

    Args:
        policy: that reads them.
        prompts: token ids, each prompt with at least one.
        batch_tokens: in one pass, padding included; chosen for the device if None.

    Returns:
        shape (prompts, hidden), in their order; neither batching nor padding changes a row beyond
        rounding.
    """
    batch_tokens = batch_tokens or _BATCH_TOKENS[policy.device.type]
    embeddings: NDArray[np.float32] | None = None
    with Progress("embedding", len(prompts), "prompts") as progress, torch.inference_mode():
        for batch in _batches([len(prompt) for prompt in prompts], batch_tokens):
            lengths = torch.tensor([len(prompts[i]) for i in batch], device=policy.device)
            # Padding stands on the right, where a causal model's tokens do not see it.
            ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
            for row, i in enumerate(batch):
                ids[row, : len(prompts[i])] = torch.tensor(prompts[i])
            # The decoder without its head: the logits are not needed.
            hidden = policy.model.base_model(input_ids=ids.to(policy.device), use_cache=False)
            states = hidden.last_hidden_state.float()  # (batch, columns, hidden)
            is_token = torch.arange(ids.shape[1], device=policy.device) < lengths[:, None]
            means = (states * is_token[:, :, None]).sum(dim=1) / lengths[:, None]
            if embeddings is None:
                embeddings = np.empty((len(prompts), means.shape[1]), dtype=np.float32)
            embeddings[batch] = means.cpu().numpy()
            progress.advance(len(batch))
    return np.empty((0, 0), dtype=np.float32) if embeddings is None else embeddings


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions of prompts of similar length whose padded batch fits, at least one each."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first is the longest, and all are padded to it.
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def semantic_similarity(
    embeddings: NDArray[np.float32],
    hard: NDArray[np.int64],
    easy: NDArray[np.int64],
    neighbours: int = NEIGHBOURS,
) -> NDArray[np.float64]:
    """Return the mean cosine of hard items to their nearest easy items.

    Args:
        embeddings: shape (items, hidden), as `prompt_embeddings` gives them.
        hard, easy: positions of items, with none in both.
        neighbours: how many easy items are the nearest; all if there are fewer.

    Returns:
        shape (hard,), from -1 to 1; nan if there are no easy items.
    """
    if not len(easy):
        return np.full(len(hard), np.nan)
    centred = embeddings - embeddings.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    units = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    count = min(neighbours, len(easy))
    nearest = [
        np.partition(units[some] @ units[easy].T, -count, axis=1)[:, -count:].mean(axis=1)
        for some in np.split(hard, range(_ITEMS_AT_ONCE, len(hard), _ITEMS_AT_ONCE))
    ]
    return np.asarray(np.concatenate(nearest), dtype=np.float64)
