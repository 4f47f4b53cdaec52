"""The metadata of a dataset card: tags, sizes, and a configuration with one split per tag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from cards.card.facts import RunFacts
from curate.errors import UsageError
from curate.tags import Trainability

_TAGS = ["rlvr", "reinforcement-learning", "grpo", "trainability", "curate"]
# Edges of the Hub's size categories, which are named like 1K<n<10K.
_SIZES = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
_SPLIT_PATHS = {tag: f"data/{tag}-*.parquet" for tag in Trainability}
_ROLLOUTS = "rollouts"
_ROLLOUT_PATH = "rollouts/*.parquet"
REWARDS = "rewards"
"""The configuration of the rewards, and its folder in the repository."""
_REWARD_PATHS = {tag: f"{REWARDS}/{tag}-*.parquet" for tag in Trainability}
_BESIDE = (_ROLLOUTS, REWARDS)


def card_metadata(
    facts: RunFacts,
    old: Mapping[str, Any],
    *,
    language: Sequence[str] = (),
    license: str = "",
    with_rollouts: bool = False,
    rewards: Sequence[Trainability] = (),
    name: str = "README.md",
) -> dict[str, Any]:
    """The metadata that a run's card shall have, beside whatever else is in it.

    `base_model` is the field by which the Hub's cards name a model; it and `source_datasets` are
    there only where the run's are on the Hub, for nothing else can be linked.

    Args:
        facts: of the run.
        old: the metadata of the card that there is; its lists are added to.
        language: ISO 639 codes; empty keeps what there is.
        license: an identifier of the Hub; empty keeps what there is.
        with_rollouts: whether there is a configuration of the rollouts.
        rewards: the splits of the configuration of the rewards; none: there is no such.
        name: what errors call the card.

    Raises:
        UsageError: the card's `configs` are no list, or use our names for other files.
    """
    configs, others = _configs(facts, old, with_rollouts, rewards, name)
    rows = sum(facts.rows_by_tag().values())
    return _metadata([facts], old, configs, rows, others, language, license)


def joined_metadata(
    runs: Sequence[RunFacts],
    file: str,
    rows: int,
    old: Mapping[str, Any],
    *,
    language: Sequence[str] = (),
    license: str = "",
    name: str = "README.md",
) -> dict[str, Any]:
    """The metadata of the card of a file of several models: all of them, and one configuration.

    Args:
        runs: of the models.
        file: its name in the repository.
        rows: how many it has.
        old, language, license, name: as in `card_metadata`.

    Raises:
        UsageError: the card's `configs` are no list, or use our name for other files.
    """
    there = _config_list(old, name)
    ours = [{"split": "train", "path": file}]
    place = next(
        (n for n, each in enumerate(there) if _is_config(each) and each["data_files"] == ours),
        len(there),
    )
    has_other_data = len(there) > (place < len(there)) or "dataset_info" in old
    configs = list(there)
    if place == len(there):
        main = "models" if has_other_data else "default"
        if main in [each.get("config_name") for each in there if isinstance(each, dict)]:
            raise _clash(main, name)
        configs.append({"config_name": main, "data_files": ours})
    return _metadata(runs, old, configs, rows, has_other_data, language, license)


def joined_config(metadata: Mapping[str, Any], file: str) -> str:
    """The name of the configuration of a file of several models."""
    ours = [{"split": "train", "path": file}]
    return next(
        str(each["config_name"])
        for each in metadata["configs"]
        if _is_config(each) and each["data_files"] == ours
    )


def _metadata(
    runs: Sequence[RunFacts],
    old: Mapping[str, Any],
    configs: list[Any],
    rows: int,
    has_other_data: bool,
    language: Sequence[str],
    license: str,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    if language:
        metadata["language"] = list(language)
    if license:
        metadata["license"] = license
    metadata["tags"] = _added(old.get("tags"), _TAGS)
    metadata["task_categories"] = old.get("task_categories") or ["text-generation"]
    # Of a card with other data it says the size of all, which is not ours to tell.
    sizes = [size_category(rows)]
    metadata["size_categories"] = (has_other_data and old.get("size_categories")) or sizes
    datasets = [
        each.run.config.dataset for each in runs if each.run.manifest["dataset"]["format"] == "hub"
    ]
    if datasets:
        metadata["source_datasets"] = _added(old.get("source_datasets"), dict.fromkeys(datasets))
    if models := dict.fromkeys(model for each in runs if (model := hub_model(each))):
        metadata["base_model"] = _added(old.get("base_model"), models)
    metadata["configs"] = configs
    return metadata


def hub_model(facts: RunFacts) -> str | None:
    """The Hub id of the model that was probed; None for local files."""
    # Only what came from the Hub has a revision.
    if facts.run.manifest["model"]["revision"] is None:
        return None
    return facts.run.config.model.partition("@")[0]


def size_category(rows: int) -> str:
    """The Hub's name for a number of rows, such as 1K<n<10K."""
    edges = [10 ** (3 + n) for n in range(len(_SIZES))]
    place = sum(rows >= edge for edge in edges)
    if place == 0:
        return f"n<{_SIZES[0]}"
    return f"n>{_SIZES[-1]}" if place == len(_SIZES) else f"{_SIZES[place - 1]}<n<{_SIZES[place]}"


def split_config(metadata: Mapping[str, Any]) -> str:
    """The name of the configuration whose splits are the tags."""
    return next(
        str(each["config_name"])
        for each in metadata["configs"]
        if _is_ours(each) and each["config_name"] not in _BESIDE
    )


def _configs(
    facts: RunFacts,
    old: Mapping[str, Any],
    with_rollouts: bool,
    rewards: Sequence[Trainability],
    name: str,
) -> tuple[list[Any], bool]:
    """All configurations, ours in the place where they were; and whether there are others."""
    there = _config_list(old, name)
    others = [each for each in there if not _is_ours(each)]
    taken = [each.get("config_name") for each in others if isinstance(each, dict)]
    # What a bare load_dataset(name) gives is for the first to say: also by a `dataset_info`, whose
    # columns and splits would be taken for those of a configuration of its name.
    has_other_data = bool(others) or "dataset_info" in old
    before = [each["config_name"] for each in there if _is_ours(each)]
    before = [each for each in before if each not in _BESIDE]
    main = before[0] if before else "trainability" if has_other_data else "default"
    splits = [
        {"split": str(tag), "path": _SPLIT_PATHS[tag]}
        for tag, rows in facts.rows_by_tag().items()
        if rows
    ]
    ours: list[Any] = [{"config_name": main, "data_files": splits}]
    if with_rollouts:
        files = [{"split": "train", "path": _ROLLOUT_PATH}]
        ours.append({"config_name": _ROLLOUTS, "data_files": files})
    if rewards:
        files = [{"split": str(tag), "path": _REWARD_PATHS[tag]} for tag in rewards]
        ours.append({"config_name": REWARDS, "data_files": files})
    clashing = [each["config_name"] for each in ours if each["config_name"] in taken]
    if clashing:
        raise _clash(clashing[0], name)
    place = next((n for n, each in enumerate(there) if _is_ours(each)), len(there))
    before_ours = [each for each in there[:place] if not _is_ours(each)]
    return before_ours + ours + others[len(before_ours) :], bool(others)


def _config_list(old: Mapping[str, Any], name: str) -> list[Any]:
    there = old.get("configs") or []
    if not isinstance(there, list):
        raise UsageError(f"{name}: `configs` in the metadata is no list; correct it first")
    return there


def _clash(config: str, name: str) -> UsageError:
    return UsageError(
        f"{name}: its configuration {config!r} is of other files, and this name is needed for the "
        "tags; give it another name first"
    )


def _is_config(config: object) -> TypeGuard[dict[str, Any]]:
    """Whether a configuration has a name and a list of files."""
    return (
        isinstance(config, dict)
        and isinstance(config.get("config_name"), str)
        and isinstance(config.get("data_files"), list)
    )


def _is_ours(config: object) -> bool:
    """Whether a configuration names only files that `curate push` writes."""
    if not _is_config(config):
        return False
    paths = [each.get("path") for each in config["data_files"] if isinstance(each, dict)]
    # What a path is compared with may be a list.
    known = [*_SPLIT_PATHS.values(), *_REWARD_PATHS.values(), _ROLLOUT_PATH]
    return len(paths) == len(config["data_files"]) > 0 and all(path in known for path in paths)


def _added(there: object, more: Iterable[str]) -> list[Any]:
    """A list of the metadata, which may be a single value, with some values added."""
    values = there if isinstance(there, list) else [] if there is None else [there]
    return [*values, *(each for each in more if each not in values)]
