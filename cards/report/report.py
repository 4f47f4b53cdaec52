"""`curate report`: one HTML file that needs nothing else, from the facts of a finished run.

The page is a template, a style sheet and scripts of this package, put together with three blocks of
JSON: the facts, the items and their rollouts. Prompts, answers, rollouts and names are untrusted
text. They stand in those blocks only, where `<`, `>` and `&` are escapes, and the scripts put them
in as text. A Content-Security-Policy allows the page's own script and style, by their hashes, and
nothing else: no other script, no handler in an attribute, no request of any kind.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from cards.report.facts import report_facts
from cards.report.forecast import groups_of_a_unit
from cards.report.gaps import at_places, gap_facts
from cards.report.items import read_report_items
from cards.report.page_items import items_in_table, shown_items, shown_rollouts
from curate.errors import RunError, UsageError
from curate.files import atomic_writer
from curate.run.names import REPORT
from curate.run.run import Run
from curate.tagged.rows import open_tagged

_PAGE = files("cards.report") / "page"
# In the order in which they use each other.
_SCRIPTS = (
    *("text.js", "charts.js", "dataset.js", "forecast.js", "gaps.js", "certainty.js"),
    *("similarity.js", "training.js", "comparison.js", "table.js", "item.js", "start.js"),
)
_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def report_run(run_dir: Path, out: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Write the report of a finished run; the same run gives the same file.

    Args:
        run_dir: the run folder.
        out: the file, ending in .html or .htm; `report.html` in the run folder by default.

    Returns:
        the file, and the facts in it (`cards.report.facts`).

    Raises:
        UsageError: no run folder, one that is not finished, a bad name for the file,
            or its tagged file is there and was written by another run.
        RunError: a file of the run is missing or damaged, or the disk is full.
    """
    run = Run.open(run_dir)
    if run.config.out and Path(run.config.out).is_file() and "write" in run.manifest["stages"]:
        open_tagged(run_dir)  # Refuses a file that another run wrote.
    file = run_dir / REPORT if out is None else out
    if file.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {file}: the report is a web page; its name must end in .html")
    if file.is_dir():
        raise UsageError(f"-o {file}: is a folder; give the name of a file in it")
    items = read_report_items(run)
    gaps, sentences = gap_facts(run, items)
    facts = report_facts(run, items, gaps)
    places = items_in_table(items, _linked(facts))
    shown = items.take(places)
    table = shown_items(shown, len(items), groups_of_a_unit(run, items))
    table["gaps"] = at_places(sentences, places)
    if len(shown) < len(items):
        table["positions"] = places.tolist()
    page = render_report(facts, table, shown_rollouts(run, shown))
    try:
        with atomic_writer(file) as opened:
            opened.write(page)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror or error}") from error
    return file, facts


def _linked(facts: dict[str, Any]) -> list[int]:
    """Positions of the items that a chart opens."""
    certainty = facts["certainty"]
    gradients = certainty["gradients"]
    return [
        *certainty["forecast"]["points"]["item"],
        *(at for each in certainty["gaps"].get("clusters", ()) for at in each["examples"]),
        *certainty["similarities"]["points"]["item"],
        *(gradients["items"]["item"] if gradients else ()),
    ]


def render_report(facts: dict[str, Any], items: dict[str, Any], rollouts: dict[str, Any]) -> bytes:
    """Put the page together, UTF-8.

    Args:
        facts: of `report_facts`.
        items: of `shown_items`, with `gaps`: sentences by position.
        rollouts: of `shown_rollouts`.
    """
    style = _part("report.css")
    script = "'use strict';\n(() => {\n" + "\n".join(map(_part, _SCRIPTS)) + "})();\n"
    page = Template(_part("report.html")).substitute(
        policy=_POLICY.format(script=_hash(script), style=_hash(style)),
        style=style,
        script=script,
        facts=embedded_json(facts),
        items=embedded_json(items),
        rollouts=embedded_json(rollouts),
    )
    # A text that came from JSON may hold half of a surrogate pair: as an escape it can be written.
    return page.encode("utf-8", "backslashreplace")


def embedded_json(value: Any) -> str:
    """JSON that can stand in a `<script>` block: nothing in it can end the block or begin another.

    Raises ValueError for a number that JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _part(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression of Content-Security-Policy that allows exactly this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def report_text(facts: dict[str, Any]) -> str:
    """Write for a terminal where the report is, and what it could not tell."""
    size = Path(facts["file"]).stat().st_size
    lines = [f"{facts['dataset']['items']:,} items, {size / 1e6:.1f} MB; open it in a browser"]
    lines += [f"not measured: {text}" for text in facts["not_measured"]]
    return "\n".join([*lines, "", f"report: {facts['file']}"])
