"""The sections of a dataset card: what a run's facts come to in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from cards.card.facts import MEASURES, RunFacts
from cards.card.markdown import code_span, plain_text, table
from cards.card.metadata import hub_model
from curate.config import TagConfig
from curate.run.tables import ITEM_ANSWERS
from curate.tags import ANSWERS, COLUMNS, FORECAST, JUDGED, MIXED, REWARDS, TARGET, Trainability
from probes.forecast.words import NO_FORECAST, forecast_words, probability_words
from probes.stages.logged import drawn_words
from probes.summary import answer_lines, tag_meanings
from probes.tag_rules import DOUBT

_NOT_MEASURED = "not measured"
PLACEHOLDER = "OWNER/NAME"
"""Of a dataset's id on the Hub, where it is not known."""
_FIGURE_SUFFIXES = (".png", ".svg", ".jpg", ".webp")
# The folders of a path that begins at the root or at home.
_ABSOLUTE_FOLDER = re.compile(r"(?<![^\s'\"(`])~?/(?:[^\s/]+/)*(?=[^\s/])")
# A share of cut completions above which pass rates say more of the limit than of the model.
_MANY_CUT = 0.2

_CITATION = """\
### Citation

The finding that the tags rest on:

```bibtex
@misc{unlearnability2026,
  title = {The Unlearnability Phenomenon in RLVR for Language Models},
  eprint = {2605.16787},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2605.16787}
}
```

"""


def dataset_name(facts: RunFacts) -> str:
    """The dataset's name; of local files without their folder, which is nobody's business."""
    dataset = facts.run.manifest["dataset"]
    return str(dataset["id"] if dataset["format"] == "hub" else dataset["name"])


def probed_model(facts: RunFacts) -> str:
    """The model that was probed: its id on the Hub, the name of local files, or who drew rollouts
    that were imported."""
    if not facts.run.config.has_policy:
        return str(facts.run.facts["model"])
    return hub_model(facts) or str(facts.run.manifest["model"]["name"])


def _probed(facts: RunFacts) -> str:
    """With what the items were probed, in a sentence."""
    config, taken = facts.run.config, facts.run.manifest.get("rollouts")
    if taken is None:
        model = code_span(probed_model(facts))
        return f"Each item was probed with {model} before any RL, and tagged"
    words = f"Each item was probed by rollouts that existed: {_drawn(taken, config)}. "
    if config.has_policy:
        words += f"Gradients are of {code_span(probed_model(facts))}. "
    return f"{words}It was tagged"


def _drawn(taken: Mapping[str, Any], config: TagConfig) -> str:
    """Who drew rollouts that were taken; what is not known in bold."""
    known, unknown = drawn_words(taken, config)
    parts = [plain_text(known)] if known else []
    return ", ".join(parts + ([f"**{unknown}**"] if unknown else []))


def tags_section(facts: RunFacts) -> str:
    """Which tags there are, how many items and rows each has, and what it means."""
    items, rows = facts.items_by_tag(), facts.rows_by_tag()
    all_items, all_rows = sum(items.values()), sum(rows.values())
    learned = "name" in facts.run.manifest.get("predictor", {})
    meanings = tag_meanings(facts.run.config.tau, learned=learned)
    head = ("split and tag", "items", "share of items", "rows", "meaning")
    body = [
        (
            f"`{tag}`",
            f"{items[tag]:,}",
            _share(items[tag], all_items),
            f"{rows[tag]:,}",
            meanings[tag],
        )
        for tag in Trainability
    ]
    body.append(("all", f"{all_items:,}", "", f"{all_rows:,}", ""))
    lines = [
        "## Trainability",
        "",
        f"{_probed(facts)} by what RL with verifiable rewards is expected to do with it. The tags "
        "are of this model: another one solves, and learns, other items.",
        "",
        *table([head, *body]),
    ]
    empty = [f"`{tag}`" for tag in Trainability if not rows[tag]]
    if empty:
        are = "is no item" if len(empty) == 1 else "are no items"
        lines += ["", f"There {are} tagged {', '.join(empty)}, so no such split."]
    left_out = facts.run.manifest["counts"]["rows"] - all_rows
    if left_out:
        rejected = facts.run.manifest["counts"]["rows_rejected"]
        lines += [
            "",
            f"{left_out:,} rows of the original are in no split: {rejected:,} could not be used, "
            f"{left_out - rejected:,} were not probed.",
        ]
    return "\n".join(lines)


def measured_section(facts: RunFacts) -> str:
    """The model, the settings, seeds and versions that the tags come from."""
    return "\n".join(["### How it was measured", "", *measured_lines(facts)])


def measured_lines(facts: RunFacts) -> list[str]:
    """The same as a list."""
    manifest, config = facts.run.manifest, facts.run.config
    model, dataset = manifest["model"], manifest["dataset"]
    revision = f"revision {code_span(model['revision'])}" if model["revision"] else (
        "local files, without a revision"
    )  # fmt: skip
    most = config.max_rollouts
    rollouts = (
        f"{most:,} an item"
        if config.min_rollouts == most
        else f"{config.min_rollouts:,} to {most:,} an item, in rounds, more where undecided"
    )
    if config.rollout_budget:
        rollouts += f", at most {config.rollout_budget:,} in all"
    elif config.min_rollouts < config.mean_rollouts < most:
        rollouts += f", at most {config.mean_rollouts:,} on average"
    taken = manifest.get("rollouts")
    if taken:
        rollouts = taken_words(taken, config)
    instruction = "by the format of the prompt" if config.instruction == "auto" else (
        code_span(config.instruction) if config.instruction else "none"
    )  # fmt: skip
    engine = manifest.get("engine", {}).get("name", "unknown engine")
    facts_of_it = {
        "Model": f"{code_span(probed_model(facts))}, {revision}, weights SHA-256 "
        f"{code_span(model['weight_hash'])}, in {model['dtype']}"
        if config.has_policy
        else "none: rollouts were imported, and nothing was measured of the policy itself",
        "Dataset": f"{code_span(dataset_name(facts))} ({dataset['format']}), fingerprint "
        f"{code_span(dataset['fingerprint'])}; prompt in {code_span(dataset['prompt_field'])}, "
        f"answer in {code_span(dataset['answer_field'])}",
        "Instruction added to the prompt": instruction if config.has_policy else "",
        "Rollouts": rollouts,
        "System message added to the prompt": code_span(config.system) if config.system else "",
        "Chat template": _template_words(config),
        "Sampling": f"temperature {config.temperature:g},{_truncation_words(config)} at most "
        f"{config.max_tokens:,} tokens, where a completion is cut and counts as wrong; "
        f"{engine}, {manifest.get('device', '?')}"
        if not taken
        else "",
        "Verifier": f"the row's own, by {code_span(config.verifier_field)}"
        if config.verifier_field
        else code_span(PurePath(config.verifier).name)
        if not taken or config.rollout_rewards == "judged"
        else f"rewards as logged, correct from {config.correct_from:g} on",
        "Easy": f"a pass rate of at least τ = {config.tau:g}; hard below",
        "Gradients": f"of up to {config.gradient_rollouts:,} correct rollouts an item, with "
        f"respect to a LoRA adapter of rank {config.gradient_rank}, projected to "
        f"{config.gradient_dim:,} dimensions"
        if config.has_policy
        else "",
        "Forecast": plain_text(forecast_words(manifest, constants=True)),
        "Target": code_span(PurePath(config.target).name) if config.target else "",
        "p_unlearnable": _predictor(manifest),
        "Seeds": ", ".join(f"{name} {seed}" for name, seed in manifest["seeds"].items()),
        "Versions": ", ".join(f"{name} {v}" for name, v in manifest["versions"].items()),
        "Measured": str(manifest["created"]),
    }
    return [f"- {name}: {value}" for name, value in facts_of_it.items() if value]


def taken_words(taken: Mapping[str, Any], config: TagConfig) -> str:
    """Where the rollouts of a run are from that were not sampled for it."""
    words = f"{taken['rollouts']:,} taken from files ({taken['format']}), at most "
    words += f"{taken['most']:,} an item; {_drawn(taken, config)}"
    if taken["encoded"]:
        words += f"; the tokens of {taken['encoded']:,} were encoded anew from text"
    several = taken.get("several_turns")
    if several:
        words += f"; {several:,} are of several turns, and their gradients are not measured"
    return words


def _template_words(config: TagConfig) -> str:
    """What chat template a run used, where it was not just the model's own."""
    own = "one of the run's own" if config.chat_template else ""
    variables = config.chat_template_kwargs
    given = f"with {code_span(variables)}" if variables else ""
    return ", ".join(part for part in (own, given) if part)


def _truncation_words(config: TagConfig) -> str:
    """What of the distribution was drawn from, where that was not all of it."""
    parts = [
        f" {name.replace('_', '-')} {getattr(config, name):g},"
        for name, whole in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0))
        if getattr(config, name) != whole
    ]
    return "".join(parts)


def _predictor(manifest: Mapping[str, Any]) -> str:
    predictor = manifest.get("predictor", {})
    if "name" not in predictor:
        return probability_words(manifest)
    outside = "; ".join(plain_text(reason) for reason in predictor["outside"])
    return f"by the predictor {code_span(PurePath(predictor['name']).name)}" + (
        f", outside of what it was fitted on: {outside}" if outside else ""
    )


def found_section(facts: RunFacts) -> str:
    """Rollouts, and the medians of each tag."""
    counts = facts.run.manifest["counts"]
    drawn, judged = counts["rollouts_drawn"], counts["rollouts_judged"]
    cut = _share(counts["rollouts_truncated"], drawn)
    medians = facts.medians()
    head = ("median of", *(f"`{name}`" for name in MEASURES))
    body = [
        (f"`{tag}`", *(_median(*medians[tag][name]) for name in MEASURES))
        for tag, items in facts.items_by_tag().items()
        if items
    ]
    return "\n".join(
        [
            "### What was found",
            "",
            f"{drawn:,} rollouts, {counts['rollouts_correct']:,} of them correct, {cut} cut at the "
            f"token limit, {drawn - judged:,} that could not be judged.",
            "",
            *table([head, *body]),
            "",
            *_answers(facts),
            "In brackets: how many items it was measured on. A similarity needs two correct "
            "rollouts, a lift one; `p_unlearnable` is for hard items.",
        ]
    )


def _answers(facts: RunFacts) -> list[str]:
    """What the answers say of golds, and of items that are never right."""
    lines = [
        "- " + re.sub("no_positive|suspect_gold", r"`\g<0>`", line)
        for line in answer_lines(facts.run.manifest.get("answers", {}))
    ]
    return [*lines, ""] if lines else []


def _median(value: float | None, items: int) -> str:
    return _NOT_MEASURED if value is None else f"{value:.3g} ({items:,})"


def figure_files(run_dir: Path) -> list[Path]:
    """The pictures in the folder `figures` of a run, by name."""
    files = sorted((run_dir / "figures").glob("*"))
    return [file for file in files if file.suffix in _FIGURE_SUFFIXES and file.is_file()]


def figures_section(facts: RunFacts) -> str:
    """The pictures of the run, if there are any."""
    # Other names would have to be escaped in the address, and `curate report` gives none such.
    names = [file.name for file in figure_files(facts.run.path)]
    return "\n\n".join(
        f"![{Path(name).stem.replace('_', ' ')}](figures/{name})"
        for name in names
        if name.replace("_", "").replace("-", "").replace(".", "").isalnum() and name.isascii()
    )


def trust_section(facts: RunFacts) -> str:
    """Reliability, and what GRPO confirmed, or that nothing was confirmed."""
    items, medians = facts.items_by_tag(), facts.medians()
    lines = [
        "### How far to trust it",
        "",
        "- `easy` and `no_positive` are counts; `pass_rate_low` and `pass_rate_high` say how sure "
        "they are.",
        _rule(facts),
    ]
    decided = [tag for tag in (Trainability.LEARNABLE, Trainability.UNLEARNABLE) if items[tag]]
    for tag in decided:
        value, known = medians[tag]["gradient_reliability"]
        said = _NOT_MEASURED if value is None else f"{value:.2g} (median of {known:,} items)"
        lines.append(
            f"- Reliability of the gradients of `{tag}` items: {said}. Near 0, an item's mean "
            "gradient cannot be told from noise."
        )
    if not decided:
        lines.append(
            "- No item is tagged `learnable` or `unlearnable`, so how well these would come true "
            f"is {_NOT_MEASURED}."
        )
    if facts.summary is None:
        lines.append(
            "- The predictions are **not confirmed**: no GRPO run was made to see whether they "
            "come true for this model."
        )
        return "\n".join(lines)
    return "\n".join([*lines, *_confirmation(facts, facts.summary)])


def _rule(facts: RunFacts) -> str:
    """By what the hard items got their tags."""
    if facts.run.manifest.get("forecast") is None:
        return (
            "- `learnable` and `unlearnable` are predictions from the geometry of gradients, "
            f"{NO_FORECAST}; `undetermined` is no verdict."
        )
    if not facts.run.config.has_policy:
        return (
            "- No item is tagged `learnable` or `unlearnable`: that takes a policy, and rollouts "
            "alone were imported; `undetermined` is no verdict."
        )
    tau = f"{facts.run.config.tau:g}"
    return (
        "- `learnable` and `unlearnable` are forecasts: of the hard items with a correct rollout, "
        f"those whose `p_unlearnable`, the probability to stay below {tau}, is at most {DOUBT:g} "
        f"or at least {1 - DOUBT:g}. It comes from the pass rate and the lift, with constants that "
        "were fitted on other trainings; `undetermined` is no verdict."
    )


def _confirmation(facts: RunFacts, summary: Mapping[str, Any]) -> Iterator[str]:
    """What GRPO made of the items, against what was predicted."""
    seeds = ", ".join(str(seed) for seed in summary["seeds"])
    agreement = summary["agreement"]
    confirmed = summary["confirmed"]
    yield (
        f"- Confirmed by GRPO, recipe {code_span(summary['recipe'])}, "
        f"{'seeds' if len(summary['seeds']) > 1 else 'seed'} {seeds}. Of "
        f"{summary['hard_items']:,} hard items {confirmed['learnable']:,} were learned in every "
        f"seed, {confirmed['unlearnable']:,} in none although a correct rollout was seen, "
        f"{confirmed['no_positive']:,} never had one, and on {confirmed['undetermined']:,} the "
        "seeds disagree or cannot be judged."
    )
    counts = (
        f"{agreement['unlearnable']:,} unlearnable and {agreement['learnable']:,} learnable items"
    )
    yield (
        f"- How well `p_unlearnable` told these apart, over {counts} that have it: AUROC "
        f"{_interval(summary, 'auroc')}; the pass rate alone: {_number(summary['auroc_pass_rate'])}"
        f"; similarity of the prompts: {_number(summary['auroc_semantic'])}. Calibration error: "
        f"{_interval(summary, 'expected_calibration_error')}. 0.5 is chance."
    )
    if summary["too_few"]:
        yield f"- **{plain_text(summary['too_few'])}**"
    for tag in (Trainability.LEARNABLE, Trainability.UNLEARNABLE):
        outcomes = summary["confusion"][tag]
        if sum(outcomes.values()):
            became = ", ".join(f"{n:,} {other}" for other, n in outcomes.items() if n)
            yield f"- Predicted `{tag}`, and what became of them: {became}."
    for note in summary["notes"]:
        yield f"- Note: {plain_text(_without_folders(note, facts, summary))}"


def _without_folders(text: str, facts: RunFacts, summary: Mapping[str, Any]) -> str:
    """A sentence in which files are named without the folders that they lie in."""
    config = facts.run.config
    for path in (config.out, config.model, config.dataset, config.run_dir, summary["run_dir"]):
        if PurePath(path).name not in ("", path) and path not in (
            hub_model(facts),
            dataset_name(facts),
        ):
            text = text.replace(path, PurePath(path).name)
    return without_absolute_folders(text)


def without_absolute_folders(text: str) -> str:
    """A sentence in which no path begins at the root or at home."""
    return _ABSOLUTE_FOLDER.sub("", text)


def columns_section(facts: RunFacts) -> str:
    """What the columns hold."""
    lines = ["### Columns", "", "All columns of the original dataset, and", ""]
    return "\n".join([*lines, *table([("column", "meaning"), *column_rows([facts])])])


def column_rows(runs: Sequence[RunFacts]) -> list[tuple[str, str]]:
    """The columns that any of the runs has with what they mean, those of one meaning together."""
    there = {when for facts in runs for when, is_there in _columns_there(facts).items() if is_there}
    rows: list[tuple[str, str]] = []
    for column in COLUMNS:
        if column.when not in there:
            continue
        if column.meaning:
            rows.append((f"`{column.name}`", column.meaning))
        else:
            names, meaning = rows[-1]
            rows[-1] = (f"{names}, `{column.name}`", meaning)
    return rows


def _columns_there(facts: RunFacts) -> dict[str, bool]:
    """Which columns a run has that not every run has, by their `when`."""
    return {
        "": True,
        TARGET: bool(facts.run.config.target),
        JUDGED: facts.run.is_judged,
        ANSWERS: ITEM_ANSWERS.is_in(facts.run.path),
        REWARDS: facts.run.config.has_own_rewards,
        FORECAST: facts.run.manifest.get("forecast") is not None,
        MIXED: bool(facts.run.config.verifier_field),
    }


def loading_section(facts: RunFacts, repo: str, config: str, with_rollouts: bool) -> str:
    """Lines of Python that load splits from the configuration `config` of `repo`."""
    repo = repo or PLACEHOLDER
    rows = facts.rows_by_tag()
    tag = next((t for t in (Trainability.LEARNABLE, *Trainability) if rows[t]), Trainability.EASY)
    which = f'"{repo}"' if config == "default" else f'"{repo}", "{config}"'
    lines = [
        "### Loading and filtering",
        "",
        "```python",
        "from datasets import concatenate_datasets, load_dataset",
        "",
        f'{tag} = load_dataset({which}, split="{tag}")',
        "",
        "# All splits, without items that are solved nearly always or never were.",
        f"splits = load_dataset({which})",
        "rows = concatenate_datasets(list(splits.values()))",
        'kept = rows.filter(lambda row: 0 < (row["pass_rate"] or 0) < 0.9)',
    ]
    if with_rollouts:
        lines += ["", f'rollouts = load_dataset("{repo}", "rollouts", split="train")']
    return "\n".join([*lines, "```"])


def limits_section(facts: RunFacts) -> str:
    """What the tags do not say."""
    config = facts.run.config
    lines = [
        "### Limits",
        "",
        "- The tags hold for the model, the prompt format, the sampling settings and the verifier "
        "named above, at the start of RL.",
        f"- A pass rate from {config.min_rollouts} rollouts is coarse: 0 of {config.min_rollouts} "
        f"leaves rates up to {1 - 0.025 ** (1 / config.min_rollouts):.2g} open.",
        "- Answers are judged by a program, which may be wrong, and against gold answers, which "
        "may be wrong too.",
        "- `undetermined` items are not worthless: RL learns some of them. Dropping them may "
        "cost more than it saves.",
    ]
    cut = facts.run.manifest["counts"]["rollouts_truncated"]
    drawn = facts.run.manifest["counts"]["rollouts_drawn"]
    if cut > _MANY_CUT * drawn:
        lines.append(
            f"- {_share(cut, drawn)} of the completions were cut at {config.max_tokens:,} tokens "
            "and count as wrong: pass rates may be higher with more."
        )
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else _NOT_MEASURED


def _number(value: float | None) -> str:
    return _NOT_MEASURED if value is None else f"{value:.2f}"


def _interval(figures: Mapping[str, Any], name: str) -> str:
    value, low, high = (figures[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return _NOT_MEASURED
    return f"{value:.2f} (95 % interval {_number(low)} to {_number(high)})"


def citation_section(*runs: RunFacts) -> str:
    """The paper, and the program."""
    versions = dict.fromkeys(str(facts.run.manifest["versions"]["curate"]) for facts in runs)
    return _CITATION + f"The tags were made with curate {' and '.join(versions)}."
