"""Recipes: every shipped one reads and resolves; files of the user's own, right and wrong."""

import dataclasses
import re
from pathlib import Path

import pytest

from curate.errors import UsageError
from recipes.listing import describe, list_recipes, recipes_text
from recipes.recipe import (
    LISTS,
    TAGS,
    Recipe,
    check_training,
    expand_names,
    read_recipe,
    read_recipes,
    recipe_names,
    recipe_text,
    with_options,
)
from tests.tag_runs import ROOT, run_curate

FULL_SIZE = {
    *("baseline", "clip-higher", "no-kl", "replay", "more-rollouts", "sft", "curriculum"),
    *("augment-similar", "augment-subproblems", "mid-trained"),
    *("full", "filtered", "trimmed", "ordered", "random"),
}


def _write(folder: Path, name: str, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def _changed(name: str, base: str) -> dict[str, object]:
    """The keys in which a recipe differs from another."""
    recipe, other = read_recipe(name), read_recipe(base)
    names = [each.name for each in dataclasses.fields(Recipe)]
    return {
        key: getattr(recipe, key)
        for key in names
        if key not in ("name", "hypothesis") and getattr(recipe, key) != getattr(other, key)
    }


# --- Where it is launched --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "3"}, "ZeRO-3"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "a parallelism config"),
        ({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, ""),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, ""),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "1"}, ""),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "no"}, ""),
        ({}, ""),
    ],
)
def test_a_launch_that_spreads_parameters_over_processes_is_one_line_at_the_start(
    environment: dict[str, str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in (1, 3):
        _write(tmp_path, str(stage), f'{{"zero_optimization": {{"stage": {stage}}}}}')
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not what:
        check_training()
        return
    # Before anything of the run is read, but that it is there.
    monkeypatch.setattr("recipes.validate.command.find_run", lambda path: path)
    ran = run_curate("validate", tmp_path, "--recipe", "baseline")
    assert ran.status == 2 and ran.last_line.count("\n") == 0
    assert what in ran.last_line and "accelerate launch --multi_gpu" in ran.last_line


# --- Those that are shipped ------------------------------------------------------------------


def test_every_recipe_of_the_issue_is_there_with_a_small_variant() -> None:
    variants = {f"{name}-small" for name in FULL_SIZE}
    assert set(recipe_names()) == FULL_SIZE | variants | {"pilot", "lora-7b"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_reads_resolves_and_round_trips(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name and recipe.hypothesis
    written = _write(tmp_path, f"{name}.toml", recipe.to_toml())
    assert read_recipe(written) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_says_what_it_tests_and_what_the_paper_found(name: str) -> None:
    comment = recipe_text(name).partition("\nextends")[0].partition("\nhypothesis")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    for words in ("# Hypothesis: ", "# The paper found: "):
        assert comment.count(words) == 1
    described = describe(name)
    assert len(described["tested"]) > 20 and len(described["paper_found"]) > 20
    assert "#" not in described["paper_found"] and "\n" not in described["paper_found"]


@pytest.mark.parametrize("name", sorted(FULL_SIZE - {"baseline"}))
def test_a_small_variant_tests_the_same(name: str) -> None:
    small, recipe = describe(f"{name}-small"), describe(name)
    for key in ("hypothesis", "tested", "paper_found"):
        assert small[key] == recipe[key]
    extends = re.findall(r'^extends = "(.*)"$', recipe_text(f"{name}-small"), re.M)
    assert extends in (["baseline-small"], ["full-small"])


def test_interventions_change_what_they_are_named_after_and_nothing_else() -> None:
    assert _changed("clip-higher", "baseline") == {"epsilon_high": 0.28}
    assert _changed("no-kl", "baseline") == _changed("no-kl-small", "baseline-small") == {"beta": 0}
    assert _changed("replay", "baseline") == {"oversample": 8, "replay_positives": 1}
    order = {"order": "curriculum"}
    assert _changed("curriculum", "baseline") == order
    assert _changed("curriculum-small", "baseline-small") == order
    assert _changed("ordered", "full") == _changed("ordered-small", "full-small") == order
    filtered = {"items": ("easy", "learnable"), "max_pass_rate": 0.9}
    assert _changed("filtered", "full") == _changed("filtered-small", "full-small") == filtered
    trimmed = {"items": ("easy", "learnable", "undetermined"), "max_pass_rate": 0.9}
    assert _changed("trimmed", "full") == _changed("trimmed-small", "full-small") == trimmed
    assert _changed("random", "full") == {"as_many_as": "filtered"}
    assert _changed("random-small", "full-small") == {"as_many_as": "filtered-small"}
    for size in ("", "-small"):
        for name in ("augment-similar", "augment-subproblems"):
            asked = _changed(f"{name}{size}", f"baseline{size}")
            assert asked == {"extra_items": "--extra-items"}
        assert _changed(f"mid-trained{size}", f"baseline{size}") == {"model": "--model"}


def test_an_adapter_for_a_7b_differs_from_the_baseline_in_what_it_trains_alone() -> None:
    changed = {"lora_rank": 32, "learning_rate": 5e-6, "rows_per_pass": 8}
    assert _changed("lora-7b", "baseline") | {"rows_per_pass": 8} == changed
    assert read_recipe("lora-7b").lora_alpha == 32


def test_a_pilot_is_the_start_of_a_training_and_is_run_only_where_it_is_asked_for() -> None:
    assert _changed("pilot", "baseline-small") == {"max_steps": 4, "save_every": 1}
    assert all("pilot" not in names for names in LISTS.values())


def test_more_rollouts_samples_as_many_a_step_as_the_baseline() -> None:
    for size in ("", "-small"):
        more, baseline = read_recipe(f"more-rollouts{size}"), read_recipe(f"baseline{size}")
        assert more.num_generations == 64 and more.items == ("unlearnable",)
        rollouts = baseline.prompts_per_step * baseline.num_generations
        assert more.prompts_per_step * more.num_generations == rollouts


def test_replay_keeps_one_correct_and_seven_wrong_of_what_it_samples() -> None:
    assert read_recipe("replay").rollouts_per_group == 64
    for size in ("", "-small"):
        replay, baseline = read_recipe(f"replay{size}"), read_recipe(f"baseline{size}")
        assert (replay.num_generations, replay.replay_positives, replay.replay_reuse) == (8, 1, 2)
        kept = baseline.prompts_per_step * baseline.num_generations
        assert replay.prompts_per_step * replay.num_generations == kept


def test_clipping_can_happen_where_it_is_tested() -> None:
    """With one update a step the ratio is 1, and no clip does anything."""
    for name in ("clip-higher", "clip-higher-small"):
        recipe = read_recipe(name)
        assert recipe.updates_per_step > 1 and recipe.epsilon_high == 0.28
        assert recipe.prompts_per_step % recipe.updates_per_step == 0


@pytest.mark.parametrize("size", ["", "-small"])
def test_the_arms_differ_in_items_and_order_only_and_the_budget_ends_them(size: str) -> None:
    arms = read_recipes([f"pays{size}"])
    assert len(arms) == 5
    for arm in arms:
        same = dataclasses.replace(
            arm, name="", hypothesis="", items=("all",), max_pass_rate=1.0, as_many_as="",
            order="shuffle",
        )  # fmt: skip
        assert same == dataclasses.replace(arms[0], name="", hypothesis="")
        assert (
            0 < arm.rollout_budget <= (arm.max_steps * arm.prompts_per_step * arm.num_generations)
        )
        assert arm.evaluate_every > 0


# --- Names -----------------------------------------------------------------------------------


def test_lists_are_expanded_in_order_and_each_recipe_comes_once() -> None:
    assert expand_names(["all-small"])[0] == "baseline-small"
    assert len(expand_names(["all-small"])) == 7
    assert expand_names(["sft", "all"]) == ["sft", *(n for n in LISTS["all"] if n != "sft")]
    assert expand_names(["my.toml", "pays", "my.toml"]) == ["my.toml", *LISTS["pays"]]
    for names in LISTS.values():
        assert set(names) <= set(recipe_names())
        # What is run unasked needs nothing that only the user has.
        assert all(with_options(recipe) == recipe for recipe in read_recipes(names))


@pytest.mark.parametrize("size", ["", "-small"])
def test_what_a_recipe_asks_for_is_filled_in_or_missed(size: str) -> None:
    similar, other = read_recipe(f"augment-similar{size}"), read_recipe(f"mid-trained{size}")
    assert with_options(similar, extra_items="my.jsonl").extra_items == "my.jsonl"
    assert with_options(other, model="m", extra_items="my.jsonl").model == "m"
    assert with_options(other, model="m", extra_items="my.jsonl").extra_items == ""
    with pytest.raises(UsageError, match=f"recipe augment-similar{size} needs --extra-items"):
        with_options(similar, model="m")
    with pytest.raises(UsageError, match=f"recipe mid-trained{size} needs --model"):
        with_options(other, extra_items="my.jsonl")


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    mine = _write(tmp_path, "baseline.toml", 'extends = "baseline"\nmax_steps = 3\n')
    with pytest.raises(UsageError, match="two recipes are named baseline"):
        read_recipes(["baseline", mine])
    assert [recipe.name for recipe in read_recipes(["baseline", "baseline"])] == ["baseline"]


@pytest.mark.parametrize(
    "name, said", [("baselin", "did you mean baseline"), ("all-smal", "all-small"), ("x", "--list")]
)
def test_an_unknown_name_gets_a_hint(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_recipes([name])


def test_the_list_shows_each_recipe_with_the_papers_finding() -> None:
    entries, text = list_recipes(), recipes_text()
    assert [entry["name"] for entry in entries] == recipe_names()
    for entry in entries:
        assert re.search(rf"(^|, ){entry['name']}[,:]", text, re.M), entry["name"]
        assert entry["hypothesis"] in text
        assert entry["paper_found"] in " ".join(text.split())
    for name in LISTS:
        assert re.search(rf"^{name}: ", text, re.M)
    assert max(map(len, text.splitlines())) < 140


# --- Files of the user's own -----------------------------------------------------------------


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    _write(tmp_path / "base", "mine.toml", 'extends = "no-kl"\nmax_steps = 7\n')
    child = _write(
        tmp_path / "deep", "child.toml", 'extends = "../base/mine.toml"\nepsilon = 0.3\n'
    )
    recipe = read_recipe(child)
    assert (recipe.name, recipe.beta, recipe.max_steps, recipe.epsilon) == ("child", 0.0, 7, 0.3)
    with pytest.raises(UsageError, match="no such recipe"):
        read_recipe(_write(tmp_path, "lost.toml", 'extends = "mine.toml"\n'))


def test_a_circle_of_extends_is_one_clear_error(tmp_path: Path) -> None:
    _write(tmp_path, "a.toml", 'extends = "b.toml"\n')
    _write(tmp_path, "b.toml", 'extends = "./a.toml"\n')
    itself = _write(tmp_path, "c.toml", 'extends = "c.toml"\n')
    for file in (str(tmp_path / "a.toml"), itself):
        with pytest.raises(UsageError, match="circle"):
            read_recipe(file)


@pytest.mark.parametrize(
    "text, said",
    [
        ("max_step = 3", "unknown key 'max_step'; did you mean 'max_steps'"),
        ('name = "x"', "unknown key 'name'"),
        ("qqqq = 1", "known: .*max_steps"),
        ('max_steps = "3"', "max_steps is '3'; it must be a whole number"),
        ("max_steps = true", "max_steps is True; it must be a whole number"),
        ("max_steps = 3.0", "must be a whole number"),
        ("beta = true", "must be a number"),
        ("dynamic_sampling = 1", "must be true or false"),
        ("model = 3", "must be text"),
        ("extends = 3", "extends is 3; it must be text"),
        ("items = [1]", "must be a list of text"),
        ('items = ["hard"]', "items is .*it must be all or easy"),
        ("items = []", "items is"),
        ('order = "sorted"', "order is 'sorted'; it must be shuffle or curriculum or dataset"),
        ('method = "ppo"', "grpo or sft"),
        ("max_steps = 0", "max_steps is 0; it must be at least 1"),
        ("num_generations = 1", "at least 2"),
        ("learning_rate = 0.0", "a number above 0"),
        ("learning_rate = nan", "a number above 0"),
        ("beta = inf", "at least 0"),
        ("updates_per_step = 3", "a multiple of updates_per_step, 3"),
        ("replay_positives = 8", "below num_generations, 8"),
        ("max_steps = ", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_recipe(_write(tmp_path, "mine.toml", text + "\n"))


def test_whole_numbers_do_for_numbers_and_one_tag_for_a_list(tmp_path: Path) -> None:
    recipe = read_recipe(_write(tmp_path, "mine.toml", 'beta = 0\nitems = "easy"\n'))
    assert recipe.beta == 0.0 and type(recipe.beta) is float
    assert recipe.items == ("easy",) and set(recipe.items) <= set(TAGS)


# --- Documents -------------------------------------------------------------------------------


def test_the_page_on_recipes_names_each_recipe_and_each_key() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in page.splitlines()
            if line.startswith("| `")]  # fmt: skip
    named = [name for row in rows for name in row]
    keys = [each.name for each in dataclasses.fields(Recipe) if each.name != "name"]
    full_size = [name for name in recipe_names() if not name.endswith("-small")]
    assert sorted(named) == sorted([*keys, *full_size, *LISTS])
