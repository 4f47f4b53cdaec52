"""How the house is built: small folders, imports that run one way, no circle of sub-packages.

A room is a folder of a package (`probes.lift`) or a module at a package's top (`probes.tag`). All
imports count, also those that a function makes when it is called.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.tag_runs import ROOT

LAYERS = ["curate", "probes", "recipes", "cards"]
MOST_FILES = 18
"""Python files that a folder may hold; more is not taken in at a glance."""


class Arrow(NamedTuple):
    """One module imports another; late where only a call of a function does."""

    importer: str
    imported: str
    is_late: bool


def modules(root: Path) -> dict[str, Path]:
    """The modules of the four packages by their dotted names."""
    files = [file for layer in LAYERS for file in sorted((root / layer).rglob("*.py"))]
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    return dict(zip((name.removesuffix(".__init__") for name in names), files, strict=True))


def arrows(root: Path) -> Iterator[Arrow]:
    """Every import of a module of this house by another."""
    known = modules(root)
    for importer, file in known.items():
        for name, is_late in _imports(ast.parse(file.read_text(encoding="utf-8")), file):
            # `from probes import tag` names a module, `from probes.tag import tag_anew` does not.
            imported = name if name in known else name.rpartition(".")[0]
            if imported in known and imported != importer:
                yield Arrow(importer, imported, is_late)


def _imports(node: ast.AST, file: Path, is_late: bool = False) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, is_late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}: a relative import"
            yield from ((f"{child.module}.{alias.name}", is_late) for alias in child.names)
        else:
            is_call = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, file, is_late or is_call)


def room(module: str) -> str:
    """The room that a module is in."""
    return ".".join(module.split(".")[:2])


def rooms_below(root: Path) -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    below: dict[str, set[str]] = {}
    for arrow in arrows(root):
        importer, imported = room(arrow.importer), room(arrow.imported)
        if importer != imported:
            below.setdefault(importer, set()).add(imported)
    return below


def test_imports_run_one_way() -> None:
    upward = [
        arrow
        for arrow in arrows(ROOT)
        if LAYERS.index(arrow.imported.partition(".")[0])
        > LAYERS.index(arrow.importer.partition(".")[0])
    ]
    assert upward == []


def test_no_rooms_import_each_other_in_a_circle() -> None:
    below = rooms_below(ROOT)
    assert below["probes.tagging"] >= {"probes.stages", "curate.run"}
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        # Each is imported by the one after it.
        pytest.fail(" <- ".join(error.args[1]))


def test_a_circle_through_a_late_import_is_found(tmp_path: Path) -> None:
    for name, text in {
        "probes/lift/a.py": "from probes.stages import b\n",
        "probes/stages/b.py": "def f():\n    from probes.lift.a import b\n",
        "cards/c.py": "import probes.stages.b\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = rooms_below(tmp_path)
    assert found == {
        "probes.lift": {"probes.stages"},
        "probes.stages": {"probes.lift"},
        "cards.c": {"probes.stages"},
    }
    with pytest.raises(CycleError):
        TopologicalSorter(found).prepare()


def test_nothing_imports_tests_benchmarks_or_examples() -> None:
    for name, file in modules(ROOT).items():
        for imported, _ in _imports(ast.parse(file.read_text(encoding="utf-8")), file):
            assert imported.partition(".")[0] not in ("tests", "benchmarks", "examples"), name


def test_no_folder_holds_more_than_one_takes_in_at_a_glance() -> None:
    for layer in LAYERS:
        for folder in (
            ROOT / layer,
            *(each for each in (ROOT / layer).rglob("*") if each.is_dir()),
        ):
            assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder


def test_every_room_says_what_it_is_for() -> None:
    for layer in LAYERS:
        for folder in {file.parent for file in (ROOT / layer).rglob("*.py")}:
            text = (folder / "__init__.py").read_text(encoding="utf-8")
            assert ast.get_docstring(ast.parse(text)), folder
