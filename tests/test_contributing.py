"""CONTRIBUTING.md names what is there: every folder and no other, files, and words in them."""

import re

from tests.tag_runs import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOPS = ("curate", "probes", "recipes", "cards", "examples", "docs", "benchmarks", "tests")


def test_the_map_names_every_folder_of_source_and_no_other() -> None:
    files = [file for top in TOPS for file in (ROOT / top).rglob("*")]
    folders = {
        str(file.parent.relative_to(ROOT)) for file in files if file.suffix in (".py", ".js", ".md")
    }
    named = re.findall(r"^- `([\w/]+)/`: .", PAGE, re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == folders


def test_files_and_the_words_in_them_are_there() -> None:
    files = set(re.findall(rf"`((?:{'|'.join(TOPS)})/[\w/.-]+)`", PAGE))
    assert len(files) > 50
    assert [file for file in files if not (ROOT / file).exists()] == []
    places = re.findall(r"`(\w+)`\s+in\s+`([\w/.]+)`", PAGE)
    assert len(places) > 9
    for word, file in places:
        assert re.search(rf"\b{word}\b", (ROOT / file).read_text(encoding="utf-8")), (word, file)


def test_it_is_read_in_one_sitting_and_found() -> None:
    assert len(PAGE.splitlines()) <= 120
    assert "(CONTRIBUTING.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_quick_tests_are_files() -> None:
    (names,) = re.findall(r"^QUICK := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)
    quick = names.replace("\\\n", " ").split()
    assert len(quick) > 20 and len(quick) == len(set(quick))
    assert [name for name in quick if not (ROOT / f"tests/test_{name}.py").is_file()] == []
