"""`curate card`: the Hub's dataset card of a run, or that card merged into one that there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cards.card.facts import RunFacts, read_run_facts
from cards.card.markdown import code_span
from cards.card.merging import has_section, merge_card, read_metadata
from cards.card.metadata import card_metadata, split_config
from cards.card.rewards import rewards_section
from cards.card.sections import (
    citation_section,
    columns_section,
    dataset_name,
    figures_section,
    found_section,
    limits_section,
    loading_section,
    measured_section,
    tags_section,
    trust_section,
)
from curate.errors import UsageError
from curate.files import write_atomically
from curate.tags import Trainability

CARD = "README.md"
"""Its name, in a run folder and on the Hub."""


def dataset_card(
    facts: RunFacts,
    card: str = "",
    *,
    repo: str = "",
    language: Sequence[str] = (),
    license: str = "",
    with_rollouts: bool = False,
    rewards: Sequence[Trainability] = (),
    name: str = "README.md",
) -> str:
    """The card of a run; the same run and card give the same text.

    Args:
        facts: of the run.
        card: the card that there is: its other text, metadata and configurations stay.
        repo: the dataset's id on the Hub, for the lines that load it.
        language, license, with_rollouts, rewards: as in `card_metadata`.
        name: what errors call the card that there is.

    Raises:
        UsageError: the card that there is cannot be merged with.
        RunError: a file of the run is missing or damaged.
    """
    metadata = card_metadata(
        facts,
        read_metadata(card, name),
        language=language,
        license=license,
        with_rollouts=with_rollouts,
        rewards=rewards,
        name=name,
    )
    parts = [
        tags_section(facts),
        measured_section(facts),
        found_section(facts),
        figures_section(facts),
        trust_section(facts),
        columns_section(facts),
        loading_section(facts, repo, split_config(metadata), with_rollouts),
        rewards_section(facts, repo) if rewards else "",
        limits_section(facts),
        citation_section(facts),
    ]
    title = f"# {code_span(dataset_name(facts))}, tagged by trainability\n\n"
    text = merge_card(card, metadata, "\n\n".join(part for part in parts if part), name)
    # A card that begins with nothing but the section has no title of its own.
    return text if card else text.replace("\n---\n", f"\n---\n\n{title}", 1)


def write_card(
    run_dir: Path,
    out: Path | None = None,
    *,
    merge: Path | None = None,
    repo: str = "",
    language: Sequence[str] = (),
    license: str = "",
) -> dict[str, Any]:
    """Write the card of a run to `out`, or else its folder's README.md; returns its metadata.

    A card that an earlier call wrote to `out` is merged with.

    Raises:
        UsageError: not a finished run, a card that cannot be merged with, or no place to write to,
            such as a file that is no card of ours.
        RunError: a file of the run is missing or damaged.
    """
    facts = read_run_facts(run_dir)

    def make(there: str, name: str) -> str:
        return dataset_card(facts, there, repo=repo, language=language, license=license, name=name)

    return write_merged(out or run_dir / CARD, merge, make)


def write_merged(out: Path, merge: Path | None, make: Callable[[str, str], str]) -> dict[str, Any]:
    """Write a card to a file, merged with the one that is there; returns its metadata.

    Args:
        out: the file; a card that an earlier call wrote to it is merged with.
        merge: another card to merge with.
        make: makes the card, of the text of the one that there is and of what errors call that.

    Raises:
        UsageError: a card that cannot be merged with, or no place to write to.
    """
    if merge is None and out.is_file():
        merge = out
        if not has_section(_read_card(out)):
            # Such as the README.md of the project that one is in.
            raise UsageError(
                f"{out} is there and was not written by `curate card`; --merge {out} adds the card "
                "to it, -o names another file"
            )
    text = make("" if merge is None else _read_card(merge), str(merge))
    try:
        write_atomically(out, text)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from error
    return read_metadata(text, str(out))


def _read_card(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be merged with: {error}") from error
