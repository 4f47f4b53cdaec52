"""`curate card` of a file of several models: one card that tells of all of them.

What the file says of the models and of how they agree is in the summary that `curate join` wrote
beside it; how each was measured is in its run folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cards.card.card import write_merged
from cards.card.facts import RunFacts, read_run_facts
from cards.card.markdown import code_span, plain_text, table
from cards.card.merging import merge_card, read_metadata
from cards.card.metadata import joined_config, joined_metadata
from cards.card.sections import (
    citation_section,
    column_rows,
    dataset_name,
    measured_lines,
    probed_model,
    without_absolute_folders,
)
from curate.errors import RunError, UsageError
from curate.files import file_sha256
from curate.run.names import join_summary
from curate.run.tables import read_json
from curate.tagged.joined import ITEM_ID, is_model_name
from curate.tags import Trainability
from probes.summary import tag_meanings

_PLACEHOLDER = "OWNER/NAME"
_TAG_WORDS = [str(tag) for tag in Trainability]


def write_joined_card(
    file: Path,
    out: Path | None = None,
    *,
    merge: Path | None = None,
    repo: str = "",
    language: Sequence[str] = (),
    license: str = "",
) -> dict[str, Any]:
    """Write the card of a file of `curate join` to `out`, or beside it; returns its metadata.

    Raises:
        UsageError: a run of the file is not there, the file is not the one that the summary is of,
            or as `write_card`.
        RunError: the summary, or a file of a run, is missing or damaged.
    """
    summary = _read_summary(file)
    # Summaries of earlier versions do not say it.
    if summary.get("sha256") not in (None, file_sha256(file)):
        raise UsageError(
            f"{file} is not the file that {join_summary(file)} tells of: it was written again or "
            "changed; `curate join` writes both anew"
        )
    runs = {each["name"]: read_run_facts(Path(each["path"])) for each in summary["models"]}
    for each in summary["models"]:
        if runs[each["name"]].run.weight_hash != each["weight_hash"]:
            raise UsageError(
                f"{each['path']} is not the run that {file} was made of: its model is another; "
                "`curate join` makes the file anew"
            )

    def make(there: str, name: str) -> str:
        try:
            return joined_card(
                file.name, summary, runs, there,
                repo=repo, language=language, license=license, name=name,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(file) from error

    return write_merged(out or joined_card_file(file), merge, make)


def joined_card_file(file: Path) -> Path:
    """Where the card goes by default: beside the file, named like it."""
    return file.with_suffix(".md")


def joined_card(
    file: str,
    summary: Mapping[str, Any],
    runs: Mapping[str, RunFacts],
    card: str = "",
    *,
    repo: str = "",
    language: Sequence[str] = (),
    license: str = "",
    name: str = "README.md",
) -> str:
    """The card of a file of several models; the same runs and card give the same text.

    Args:
        file: its name.
        summary: that `curate join` wrote.
        runs: of the models, by their names.
        card: the card that there is: its other text, metadata and configurations stay.
        repo: the dataset's id on the Hub, for the lines that load it.
        language, license, name: as in `card_metadata`.

    Raises:
        UsageError: the card that there is cannot be merged with.
        RunError: a file of a run is missing or damaged.
    """
    facts = list(runs.values())
    metadata = joined_metadata(
        facts, file, summary["rows"], read_metadata(card, name),
        language=language, license=license, name=name,
    )  # fmt: skip
    parts = [
        _models_section(summary, runs),
        _agreement_section(summary),
        *(_measured(each, of) for each, of in runs.items()),
        _columns_section(facts),
        _loading_section(list(runs), repo, joined_config(metadata, file)),
        _limits_section(summary),
        citation_section(*facts),
    ]
    data = dataset_name(facts[0])
    title = f"# {code_span(data)}, tagged by trainability for {len(runs)} models\n\n"
    text = merge_card(card, metadata, "\n\n".join(parts), name)
    return text if card else text.replace("\n---\n", f"\n---\n\n{title}", 1)


def _read_summary(file: Path) -> dict[str, Any]:
    """The summary beside a file.

    Raises:
        RunError: it is not one that `curate join` wrote.
    """
    summary = read_json(join_summary(file))
    try:
        names = [each["name"] for each in summary["models"]]
        of_pairs = {pair[side] for pair in summary["pairs"] for side in ("first", "second")}
        # They go into code and into Markdown as they are.
        is_ours = len(names) > 1 and all(map(is_model_name, names))
        is_ours &= of_pairs == set(summary["solved"]["only"]) == set(names)
    except (KeyError, TypeError) as error:
        raise _damaged(file) from error
    if not is_ours:
        raise _damaged(file)
    return summary


def _damaged(file: Path) -> RunError:
    return RunError(f"{join_summary(file)} is damaged; `curate join` writes it anew")


# --- Sections -------------------------------------------------------------------------------------


def _models_section(summary: Mapping[str, Any], runs: Mapping[str, RunFacts]) -> str:
    """Which models there are, and how many items have which tag under each."""
    models = summary["models"]
    taus = {of.run.config.tau for of in runs.values()}
    learned = any("name" in of.run.manifest.get("predictor", {}) for of in runs.values())
    head = ("tag", *(f"`{each['name']}`" for each in models), "meaning")
    meanings = tag_meanings(taus.pop(), learned=learned) if len(taus) == 1 else {}
    body = [
        (tag, *(f"{each['tags'][tag]:,}" for each in models), meanings.get(Trainability(tag), ""))
        for tag in _TAG_WORDS
    ]
    body = [(f"`{row[0]}`", *row[1:]) for row in body]
    body.append(("all items", *(f"{each['items']:,}" for each in models), ""))
    body.append(
        ("mean pass rate", *(_number(each["mean_pass_rate"]) for each in models),
         f"of the {summary['items']['in_all']:,} items that all models were probed on")
    )  # fmt: skip
    lines = [
        "## Trainability for several models",
        "",
        "Each item was probed with each of these models before any RL, and tagged by what RL with "
        "verifiable rewards is expected to do with it for that model:",
        "",
        *(f"- `{name}`: {code_span(probed_model(of))}" for name, of in runs.items()),
        "",
        *table([head, *body]),
        "",
        f"The file has {summary['rows']:,} rows, of {summary['items']['rows']:,} items.",
    ]
    for each in models:
        if each["items_missing"] or each["items_beyond"]:
            lines.append(
                f"Of these items `{each['name']}` was not probed on {each['items_missing']:,}; "
                f"{each['items_beyond']:,} that it was probed on are not in the file."
            )
    return "\n".join(lines)


def _agreement_section(summary: Mapping[str, Any]) -> str:
    """How far the tags agree, and which items who solves."""
    solved = summary["solved"]
    alone = "; ".join(
        f"`{name}` {each['items']:,}, {each['sure']:,} of these beyond the errors of the pass rates"
        for name, each in solved["only"].items()
    )
    lines = [
        "### How the models agree",
        "",
        f"Of {summary['items']['in_all']:,} items that all were probed on, all models solve "
        f"{solved['by_all']:,} (`easy`), and none {solved['by_none']['items']:,}; on "
        f"{solved['never_right']:,} of these no rollout of any model was right. Solved by one "
        f"alone: {alone}.",
    ]
    doubted = summary["suspect_golds"]["items"]
    if doubted:
        lines += [
            "",
            "Gold answers that look wrong by what every model answers (`suspect_gold`): "
            f"{doubted:,} items.",
        ]
    return "\n".join([*lines, *chain.from_iterable(map(_pair, summary["pairs"]))])


def _pair(pair: Mapping[str, Any]) -> Iterator[str]:
    first, second = pair["first"], pair["second"]
    kappa = "not defined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
    share = "no" if pair["equal"] is None else f"{pair['equal']:.1%}"
    yield ""
    yield (
        f"`{first}` and `{second}` have the same tag for {share} of {pair['items']:,} items "
        f"(Cohen's kappa: {kappa}). Beyond the errors of both, the pass rate is higher for "
        f"`{first}` on {pair['first_higher']:,} and for `{second}` on {pair['second_higher']:,}."
    )
    rows = [tag for tag in _TAG_WORDS if any(pair["tags"][tag].values())]
    if not rows:
        return
    across = [tag for tag in _TAG_WORDS if any(pair["tags"][row][tag] for row in rows)]
    yield ""
    yield from table(
        [
            (f"`{first}` down, `{second}` across", *(f"`{tag}`" for tag in across)),
            *(
                (f"`{row}`", *(f"{pair['tags'][row][tag]:,}" for tag in across))
                for row in rows
            ),
        ]
    )  # fmt: skip


def _measured(name: str, facts: RunFacts) -> str:
    confirmed = "no GRPO run was made to see whether the predictions come true"
    if facts.summary is not None:
        confirmed = f"by GRPO, recipe {code_span(facts.summary['recipe'])}"
    lines = [*measured_lines(facts), f"- Confirmed: {confirmed}"]
    return "\n".join([f"### How `{name}` was measured", "", *lines])


def _columns_section(runs: Sequence[RunFacts]) -> str:
    rows = [row for row in column_rows(runs) if row[0] != f"`{ITEM_ID}`"]
    return "\n".join(
        [
            "### Columns",
            "",
            f"All columns of the original dataset, `{ITEM_ID}` (a hash of prompt and answer: the "
            "same item has the same id in every dataset), and for each model, with its name and a "
            "dot before them:",
            "",
            *table([("column", "meaning"), *rows]),
        ]
    )


def _loading_section(names: Sequence[str], repo: str, config: str) -> str:
    """Lines of Python that load the file, and choose by two of the models."""
    which = f'"{repo or _PLACEHOLDER}"' + ("" if config == "default" else f', "{config}"')
    one, other = names[0], names[-1]
    return "\n".join(
        [
            "### Loading and filtering",
            "",
            "```python",
            "from datasets import load_dataset",
            "",
            f'rows = load_dataset({which}, split="train")',
            "",
            f"# What {other} solves and {one} has yet to learn.",
            "kept = rows.filter(",
            f'    lambda row: row["{other}.trainability"] == "easy"',
            f'    and row["{one}.trainability"] == "learnable"',
            ")",
            "```",
        ]
    )


def _limits_section(summary: Mapping[str, Any]) -> str:
    """What the tags do not say, and what makes the models hard to compare."""
    lines = [
        "### Limits",
        "",
        "- The tags of a model hold for it, its prompt format, its sampling settings and its "
        "verifier, at the start of RL.",
        "- Answers are judged by a program, which may be wrong, and against gold answers, which "
        "may be wrong too.",
    ]
    if not summary["notes"]:
        lines.append(
            "- Verifier, sampling settings and instruction were the same for all models; chat "
            "templates are each model's own."
        )
    return "\n".join([*lines, *map(_note, summary["notes"])])


def _note(text: str) -> str:
    return f"- {plain_text(without_absolute_folders(text))}."


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
