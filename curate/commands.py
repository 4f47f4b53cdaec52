"""The commands as library functions, for notebooks and scripts.

Beside the command line this is the only module here that reaches up to `probes`, and like it only
when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.config import TagConfig, config_from_mapping
from curate.errors import UsageError
from curate.run.tables import OUTCOMES


def tag(dataset: str | Path, model: str | Path, **settings: Any) -> pa.Table:
    """Probe every item of a dataset and write the tagged dataset, as `curate tag` does.

    Args:
        dataset: a file, folder or Hub id.
        model: a model folder, a Hub id (`org/name@revision`) or a .gguf file.
        settings: the options of `curate tag`, with underscores: `min_rollouts=64`.

    Returns:
        the tagged dataset, a row for every row of the input, as it stands in the tagged file.

    Raises:
        UsageError: bad input or settings.
        RunError: a stage failed; the same call continues.
    """
    from curate.datasets.source import open_source
    from curate.run.quality import run_schema
    from curate.tagged.write import read_table, with_types
    from probes.tag import tag_dataset

    values = {"dataset": dataset, "model": model, **settings}
    config, out = tag_dataset(config_from_mapping(values, "tag()"))
    return with_types(read_table(open_source(out)), run_schema(Path(config.run_dir), config))


def merge(
    run: str | Path,
    shards: Sequence[str | Path] = (),
    *,
    dataset: str | Path = "",
    out: str | Path = "",
) -> dict[str, Any]:
    """Join what `curate tag --shard I/N` did on several machines, as `curate merge` does.

    Args:
        run: the run folder: the `--run-dir` of the shards.
        shards: where shards lie that are not in it: their folders, or other machines' run folders.
        dataset: the dataset, where it is not at the place that the shards had it.
        out: the tagged file, if it is to be another than the shards were told.

    Returns:
        `finished`; `round`, the one that is open or the last; `shards`, `run_dir`, `tagged_file`.

    Raises:
        UsageError: the shards do not belong together, or one is missing or not finished.
        RunError: a file is damaged or the disk is full; the same call continues.
    """
    from probes.merge import merge_run

    others = [Path(each) for each in shards]
    return merge_run(Path(run), others, dataset=str(dataset), out=str(out))


def filter(
    tagged: str | Path,
    out: str | Path,
    *,
    keep: str | Sequence[str] = (),
    by: str = "predicted",
    min_pass_rate: float | None = None,
    max_pass_rate: float | None = None,
    max_p_unlearnable: float | None = None,
    min_forecast: float | None = None,
    max_forecast: float | None = None,
    min_lift: float | None = None,
    min_teaching: float | None = None,
    min_similarity: float | None = None,
    min_reliability: float | None = None,
    expr: str = "",
    balance: bool = False,
    balance_by: str = "",
    sample: int | None = None,
    seed: int = 0,
    dropped: str | Path | None = None,
    format: str = "",
    prompt_field: str | None = None,
    answer_field: str | None = None,
    instruction: str | None = None,
    data_source: str | None = None,
) -> dict[str, Any]:
    """Write the rows of a tagged dataset that are worth training on, as `curate filter` does.

    Args:
        tagged: a tagged file, or the run folder that wrote one.
        out: the file to write; its suffix, or `format`, decides what it is.
        keep: tags, `predicted` or `confirmed` as `by` says; empty: all.
        min_pass_rate, max_pass_rate, min_forecast, max_forecast, min_lift, min_teaching,
            min_similarity, min_reliability: bounds, themselves included; a row without the value
            is dropped.
        max_p_unlearnable: the same, but rows without one (easy) stay.
        expr: a condition on any columns: `curate.tagged.expressions` says what it may hold.
        balance: equally many rows of every tag; `balance_by`: of every value of a column.
        sample: rows to draw from those left.
        seed: of both draws.
        dropped: a file for the rows dropped, each with its `dropped_reason`.
        format: trl, verl, open-instruct, prime-rl, jsonl or parquet.
        prompt_field, answer_field, instruction, data_source: for a trainer's format, what the run
            folder does not tell: `curate.tagged.trainers.FormatOptions`.

    Returns:
        counts of rows kept and dropped, by rule and by tag.

    Raises:
        UsageError: bad input, or no row is left; nothing was written.
        RunError: the disk failed, or the dataset changed meanwhile.
    """
    from curate.tagged.select import CONFIRMED, PREDICTED, Bound, Rules
    from curate.tagged.trainers import FormatOptions
    from curate.tagged.training_files import filter_file

    columns = {"predicted": PREDICTED, "confirmed": CONFIRMED}
    if by not in columns:
        raise UsageError(f"by is {by!r}; it must be predicted or confirmed")
    bounds = (
        Bound("pass_rate", min_pass_rate, max_pass_rate),
        Bound("p_unlearnable", maximum=max_p_unlearnable, keeps_null=True),
        Bound("forecast_pass_rate", min_forecast, max_forecast),
        Bound("lift", min_lift),
        Bound("teaching", min_teaching),
        Bound("gradient_similarity", min_similarity),
        Bound("gradient_reliability", min_reliability),
    )
    rules = Rules(
        keep=(keep,) if isinstance(keep, str) else tuple(keep),
        tag_column=columns[by],
        bounds=tuple(each for each in bounds if (each.minimum, each.maximum) != (None, None)),
        balance_by=balance_by or (columns[by] if balance else ""),
        sample=sample,
        seed=seed,
    )
    return filter_file(
        tagged,
        Path(out),
        rules,
        expression=expr,
        dropped=None if dropped is None else Path(dropped),
        trainer=format,
        options=FormatOptions(prompt_field, answer_field, instruction, data_source),
    )


def order(
    tagged: str | Path,
    out: str | Path,
    *,
    by: str = "curriculum",
    seed: int = 0,
    format: str = "",
    prompt_field: str | None = None,
    answer_field: str | None = None,
    instruction: str | None = None,
    data_source: str | None = None,
) -> dict[str, Any]:
    """Write a tagged dataset in the order in which to train on it, as `curate order` does.

    Args:
        tagged: a tagged file, or the run folder that wrote one.
        out: the file to write; its suffix, or `format`, decides what it is.
        by: a strategy: a name of `curate.tagged.orders.ORDERS`.
        seed: of a strategy that draws.
        format: trl, verl, open-instruct, prime-rl, jsonl or parquet.
        prompt_field, answer_field, instruction, data_source: for a trainer's format, what the run
            folder does not tell: `curate.tagged.trainers.FormatOptions`.

    Returns:
        the number of rows, and where each tag's rows stand.

    Raises:
        UsageError: bad input; nothing was written.
        RunError: the disk failed, or the dataset changed meanwhile.
    """
    from curate.tagged.trainers import FormatOptions
    from curate.tagged.training_files import order_file

    options = FormatOptions(prompt_field, answer_field, instruction, data_source)
    return order_file(tagged, Path(out), by, seed=seed, trainer=format, options=options)


def forecast(
    path: str | Path,
    lift: str | Path,
    *,
    recipe: str | Path = "pilot",
    seeds: Sequence[int] = (1,),
    horizon: float | None = None,
    model: str | Path = "",
    keep: bool = False,
) -> dict[str, Any]:
    """Measure the lift of every item of a run and tag it anew, as `curate forecast` does.

    Args:
        path: a run folder of `tag`, or its tagged file.
        lift: `gradients`, `pilot`, or a checkpoint: a model (folder or Hub id), or the folder of a
            LoRA adapter.
        recipe: of the pilot: a name, or the path of a TOML file.
        seeds: the pilot is run once with each.
        horizon: the training that is forecast, as a multiple of what the tags suppose; None: as
            before.
        model: where the probed model lies, if it was moved.
        keep: keep the pilot's weights.

    Returns:
        `run_dir`, `tagged_file`, and `lift`: where it comes from and what it cost. Of several
        processes that train a pilot (`accelerate launch`) only the main one gets them.

    Raises:
        UsageError: bad input; nothing was spent.
        RunError: a step failed; the same call continues.
    """
    from curate.run.folder import find_run

    run = find_run(Path(path))
    if str(lift) == "pilot":
        from recipes.recipe import read_recipe, with_options

        chosen = with_options(read_recipe(str(recipe)))
        _check_training()
        # TRL takes seconds to import, so what can be wrong with a recipe shows before.
        from recipes.forecast.by_pilot import forecast_by_pilot

        return forecast_by_pilot(run, chosen, seeds, horizon=horizon, model=str(model), keep=keep)
    from recipes.forecast.forecast import forecast_by_checkpoint, forecast_by_gradients

    if str(lift) == "gradients":
        return forecast_by_gradients(run, horizon=horizon)
    return forecast_by_checkpoint(run, str(lift), horizon=horizon, model=str(model))


def validate(
    path: str | Path,
    *,
    recipe: str | Sequence[str] = "baseline",
    seeds: Sequence[int] = (1, 42, 37),
    model: str | Path = "",
    extra_items: str | Path = "",
    held_out: str | Path = "",
    keep: str = "none",
) -> list[Path]:
    """Train by recipes on the items of a run and write every item's outcome.

    Args:
        path: a run folder of `tag`, or its tagged file.
        recipe: names, paths of TOML files, or lists such as `all-small`.
        seeds: each recipe is trained once with each.
        model, extra_items: what the recipes `mid-trained` and `augment-...` ask for.
        held_out: a dataset of items that are evaluated on the way and not trained on.
        keep: weights that stay: none, policy or all.

    Returns:
        the `outcomes.parquet` of every recipe and seed.

    Raises:
        UsageError: bad input; nothing was spent.
        RunError: a step failed; the same call continues.
    """
    from recipes.recipe import read_recipes, with_options

    names = [recipe] if isinstance(recipe, str) else recipe
    chosen = [
        with_options(each, model=str(model), extra_items=str(extra_items))
        for each in read_recipes(names)
    ]
    _check_training()
    # TRL takes seconds to import, so what can be wrong with a recipe shows before.
    from recipes.validate.validate import Wanted, validate_run

    wanted = Wanted(model=str(model), held_out=str(held_out), keep=keep)
    return [OUTCOMES.path(folder) for folder in validate_run(Path(path), chosen, seeds, wanted)]


def _check_training() -> None:
    """Name what training needs and is not installed."""
    missing = [name for name in ("trl", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"training needs {', '.join(missing)}: pip install 'rl-curate[train]' installs it"
        )


def confirm(run: str | Path, recipe: str = "") -> dict[str, Any]:
    """Confirm the tags of a run by its GRPO runs, as `curate confirm` does.

    Args:
        run: the run folder.
        recipe: whose outcomes confirm; by default `baseline`, or `baseline-small`, or the only one.

    Returns:
        the summary: what `validation/summary.json` of the run folder then holds.

    Raises:
        UsageError: not a run folder, nothing validated, or outcomes of other items.
        RunError: a file is damaged, or the disk is full.
    """
    from recipes.confirm.confirm import confirm_run

    return confirm_run(Path(run), recipe)


def calibrate(
    run: str | Path,
    *more_runs: str | Path,
    out: str | Path | None = None,
    reasoning_quality: bool = False,
) -> dict[str, Any]:
    """Fit a predictor of unlearnable items on confirmed runs, as `curate calibrate` does.

    Args:
        run: a run folder of `curate tag`, confirmed by `curate confirm`.
        more_runs: others, whose items are pooled with its own.
        out: the predictor file; `validation/predictor.json` in the first run if None.
        reasoning_quality: let it go by the scores of `curate judge` too, which all runs must have.

    Returns:
        what the file holds, with its name as `file`: the coefficients, what they were fitted on,
        and under `cross_validation` how well they predict other items.

    Raises:
        UsageError: a run is not confirmed, the runs do not go together, or there are too few items.
        RunError: a file of a run is missing or damaged.
    """
    from recipes.calibrate.calibrate import calibrate_run

    return calibrate_run(
        [Path(each) for each in (run, *more_runs)],
        Path(out) if out is not None else None,
        reasoning_quality=reasoning_quality,
    )


def compare(
    run_a: str | Path,
    run_b: str | Path,
    *,
    groups_from: str | Path | None = None,
    out: str | Path | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """Compare two probes of the same items by two policies, as `curate compare` does.

    Args:
        run_a: run folder of `curate tag`: the policy before.
        run_b: the same: the policy after.
        groups_from: the run folder whose tags, or confirmed tags, make the groups; default `run_a`.
        out: a Parquet file for the items, with the summary beside it as `.json`; by default
            `RUN_B/comparison/<name of RUN_A>.parquet`.

    Returns:
        the items that both runs have (`COMPARISON_SCHEMA` of `recipes.compare.compare`), and the
        summary.

    Raises:
        UsageError: bad input, or no item is in both.
        RunError: a file of a run is missing or damaged.
    """
    from recipes.compare.compare import compare_runs
    from recipes.compare.text import comparison_file, write_comparison

    a, b = Path(run_a), Path(run_b)
    file = comparison_file(a, b, None if out is None else Path(out))
    comparison = compare_runs(a, b, None if groups_from is None else Path(groups_from))
    write_comparison(file, comparison)
    return comparison.items, comparison.summary


def judge(
    run: str | Path,
    *,
    base_url: str | Sequence[str],
    judge_model: str,
    per_item: int = 4,
    tags: Sequence[str] = (),
    limit: int = 0,
    rubric: str | Path | None = None,
    api_key_env: str = "",
    concurrency: int = 16,
    max_tokens: int = 1024,
    price_in: float | None = None,
    price_out: float | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Have a language model grade the reasoning of correct rollouts, as `curate judge` does.

    Args:
        run: the folder of a finished run.
        base_url: the OpenAI-compatible server of the judge, or several.
        judge_model: its name there.
        per_item: correct rollouts of an item that are graded, at most; each twice.
        tags: items with these tags; empty: all.
        limit: items, at most; equally many of each tag; 0: all.
        rubric: a text with lists to grade by; the own one if None.
        api_key_env: the environment variable with the key; OPENAI_API_KEY if empty.
        concurrency: requests at each server at a time.
        max_tokens: of an answer.
        price_in, price_out: of a million tokens, for the cost.
        dry_run: only estimate.

    Returns:
        the summary: what `judging/summary.json` of the run folder then holds.

    Raises:
        UsageError: bad input, or a server that refuses the key or has no such model.
        RunError: no server is left, or the disk failed; the same call continues.
    """
    from probes.servers.asking import LanguageModel
    from recipes.judge.judge import JudgeSettings, judge_run

    model = LanguageModel(
        judge_model,
        (base_url,) if isinstance(base_url, str) else tuple(base_url),
        api_key_env=api_key_env,
        max_tokens=max_tokens,
        concurrency=concurrency,
        price_in=price_in,
        price_out=price_out,
    )
    settings = JudgeSettings(per_item, tuple(tags), limit, None if rubric is None else Path(rubric))
    return judge_run(Path(run), settings, model, dry_run=dry_run)


def augment(
    run: str | Path,
    mode: str,
    *,
    base_url: str | Sequence[str],
    judge_model: str,
    check_model: str = "",
    check_base_url: str | Sequence[str] = (),
    per_item: int = 4,
    tags: Sequence[str] = ("unlearnable",),
    limit: int = 0,
    out: str | Path | None = None,
    api_key_env: str = "",
    check_api_key_env: str = "",
    concurrency: int = 16,
    max_tokens: int = 4096,
    temperature: float = 0.7,
    price_in: float | None = None,
    price_out: float | None = None,
    check_price_in: float | None = None,
    check_price_out: float | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Have language models write and check new problems, as `curate augment` does.

    Args:
        run: the folder of a finished run.
        mode: similar or subproblems.
        base_url, judge_model: who writes, and where: one server with it or several.
        check_model, check_base_url: who answers the new problems; the writer's by default.
        per_item: new problems that are asked for from each item.
        tags: of the items.
        limit: items, at most; 0: all.
        out: the .jsonl file; `augmentation/MODE.jsonl` in the run folder if None.
        api_key_env, check_api_key_env: environment variables with the keys; OPENAI_API_KEY if
            empty. The writer's key goes to its own servers only.
        concurrency: requests at each server at a time.
        max_tokens: of an answer.
        temperature: of the writer; the checker has 0.
        price_in, price_out: of a million tokens; check_...: the checker's, or else the same.
        dry_run: only estimate.

    Returns:
        the summary, which also stands beside the dataset as `.json`.

    Raises:
        UsageError: bad input, or a server that refuses the key or has no such model.
        RunError: no server is left, or the disk failed; the same call continues.
    """
    from probes.servers.asking import LanguageModel
    from recipes.augment.augment import AugmentSettings, augment_run

    urls = (base_url,) if isinstance(base_url, str) else tuple(base_url)
    given = (check_base_url,) if isinstance(check_base_url, str) else tuple(check_base_url)
    check_urls = given or urls
    writer = LanguageModel(
        judge_model,
        urls,
        api_key_env=api_key_env,
        max_tokens=max_tokens,
        temperature=temperature,
        concurrency=concurrency,
        price_in=price_in,
        price_out=price_out,
    )
    checker = LanguageModel(
        check_model or judge_model,
        check_urls,
        api_key_env=check_api_key_env or (api_key_env if check_urls == urls else ""),
        max_tokens=max_tokens,
        concurrency=concurrency,
        price_in=price_in if check_price_in is None else check_price_in,
        price_out=price_out if check_price_out is None else check_price_out,
    )
    settings = AugmentSettings(
        mode, per_item, tuple(tags), limit, None if out is None else Path(out)
    )
    return augment_run(Path(run), settings, writer, checker, dry_run=dry_run)


def card(
    run: str | Path,
    out: str | Path | None = None,
    *,
    merge: str | Path | None = None,
    repo: str = "",
    language: Sequence[str] = (),
    license: str = "",
) -> dict[str, Any]:
    """Write a dataset card for the Hub, as `curate card` does.

    Args:
        run: the folder of a finished run.
        out: where the card goes; None: `README.md` of the run folder.
        merge: a card whose other text, metadata and configurations stay.
        repo: the dataset's id on the Hub, for the lines that load it.
        language: ISO 639 codes of the items' languages; none keeps those of the card merged with.
        license: an identifier of the Hub; none keeps that of the card merged with.

    Returns:
        the card's metadata.

    Raises:
        UsageError: not a finished run, or a card that cannot be merged with; nothing was written.
        RunError: a file of the run is missing or damaged.
    """
    from cards.card.card import write_card

    return write_card(
        Path(run),
        None if out is None else Path(out),
        merge=None if merge is None else Path(merge),
        repo=repo,
        language=language,
        license=license,
    )


def push(
    run: str | Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    with_rollouts: bool = False,
    tagged: str | Path | None = None,
    overwrite: bool = False,
    create_pr: bool = False,
    language: Sequence[str] = (),
    license: str = "",
) -> dict[str, Any]:
    """Upload a run to the Hub as a dataset, as `curate push` does.

    Args:
        run: the folder of a finished run.
        repo: `owner/name` of the dataset; a name alone is one of your own.
        private: make the repository private, if it is not there yet.
        dry_run: upload nothing, and use no network.
        with_rollouts: upload the sampled completions too.
        tagged: the tagged file, if it is no longer where `curate tag` wrote it.
        overwrite: replace files of the repository that no push of this run wrote.
        create_pr: open a pull request instead of committing.
        language, license: as in `card`.

    Returns:
        `repo`, `files` (`path` and `bytes` of each), `deleted`, `dry_run`, and of a push `changed`,
        `commit` and `url`.

    Raises:
        UsageError: bad input, a refused token or name, or files that would be replaced unseen.
        RunError: the connection was lost, or the repository changed; the same call continues.
    """
    from cards.push.push import PushSettings, push_run

    settings = PushSettings(
        repo,
        private=private,
        with_rollouts=with_rollouts,
        language=language,
        license=license,
        tagged=None if tagged is None else Path(tagged),
        overwrite=overwrite,
        create_pr=create_pr,
    )
    return push_run(Path(run), settings, dry_run=dry_run)


def report(run: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Write the report of a run as one HTML file, as `curate report` does.

    Args:
        run: the run folder.
        out: the file, ending in .html; `report.html` in the run folder if None.

    Returns:
        the numbers of every chart in it, with its name as `file`.

    Raises:
        UsageError: no run folder, one that is not finished, or a bad name for the file.
        RunError: a file of the run is missing or damaged, or the disk is full.
    """
    from cards.report.report import report_run

    file, facts = report_run(Path(run), None if out is None else Path(out))
    return {"file": str(file), **facts}


def doctor(config: TagConfig | None = None, *, items: int | None = None) -> dict[str, Any]:
    """Tell what this machine can do, and what is in the way of `tag`, as `curate doctor` does.

    Args:
        config: of the run that is planned: its model, dataset and sizes; the defaults if None.
        items: of that run; None: those of its dataset, or 1,000 where it names none.

    Returns:
        `curate` (the version), `can_tag` (whether nothing blocks it), and `findings`, each with
        `about`, `state` (ok, limit or blocks), `text` and `remedy`.

    Raises:
        UsageError: a dataset or model that is not there, or no items.
    """
    from probes.doctor.findings import doctor_facts, examine

    return doctor_facts(examine(config or TagConfig(), items))
