"""The report in a real browser: what it loads, shows and does; what untrusted text cannot do."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cards.report import facts as report_facts
from cards.report import page_items as shown_items
from cards.report.report import report_run
from curate.run.tables import REWARDS
from tests.browser import chromium, console, open_page, requests
from tests.made.report import as_of_an_earlier_version, item_id, with_lengths, write_report_run
from tests.made.run import write_quality, write_training
from tests.tag_runs import additions, run_curate, tag, write_jsonl

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'><svg onload=window.hacked=4>",
    '<a href="javascript:window.hacked=5" autofocus onfocus="window.hacked=6">here</a>',
    "<!--<script> <b><table><style>*{display:none}</style> \u2028\u2029 <textarea>",
    "gold \u202e:rewsna\u2066 \u200fno\u200b space\ufeff "
    "\x00\x07 \U000e0041 ${facts} $facts &lt;b&gt; \x1a|1|2",
    "[x](javascript:alert(1)) {{constructor}} ]]> --> */ // '\"`",
]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_report_run(tmp_path_factory.mktemp("report") / "run")
    return report_run(run)[0]


@pytest.fixture
def opened(driver: Any, page: Path) -> Any:
    forget(driver)
    open_page(driver, page)
    return driver


def forget(driver: Any) -> None:
    console(driver)
    requests(driver)


def rows(driver: Any) -> list[list[str]]:
    """The texts of the cells in sight, row by row."""
    script = """return [...document.querySelectorAll('#grid .row')]
        .sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
        .map(row => [...row.children].map(cell => cell.textContent))"""
    return list(driver.execute_script(script))


def column(driver: Any, name: str) -> list[str]:
    heads = driver.execute_script(
        "return [...document.querySelectorAll('#grid [role=columnheader]')].map(h => h.dataset.key)"
    )
    at = heads.index(name)
    return [row[at] for row in rows(driver)]


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def wait(driver: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 10).until(lambda each: each.execute_script(script))


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(driver).send_keys(getattr(Keys, key, key)).perform()


def status(driver: Any) -> str:
    return str(find(driver, "#items .status").text)


def focused(driver: Any) -> str:
    return str(driver.execute_script("return document.activeElement.id"))


# --- Loading ---------------------------------------------------------------------------------


def test_it_loads_without_an_error_or_a_request(opened: Any, page: Path) -> None:
    assert console(opened) == []
    assert requests(opened) == [page.resolve().as_uri()]
    questions = [head.text for head in opened.find_elements("css selector", "main h2")]
    assert questions == ["What is in this dataset?", "How sure are we?", "Show me an item"]
    charts = opened.execute_script(
        "return [...document.querySelectorAll('svg[role=img], canvas[role=img]')]"
        ".map(chart => chart.getAttribute('aria-label'))"
    )
    assert len(charts) >= 4 and all(charts)
    # A point an item in the forecast's chart, and one of each that has a similarity.
    assert opened.execute_script("return document.querySelectorAll('.forecast-point').length") == 60
    assert opened.execute_script("return document.querySelectorAll('.point').length") == 60 + 36
    caption = find(opened, "figcaption .expected").text
    assert "Of 48 hard items 12 are expected to reach τ" in caption
    assert "24 not" in caption and "12 are undecided" in caption


@pytest.mark.parametrize("width", [400, 1240])
def test_it_fits_the_window(opened: Any, page: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        open_page(opened, page)
        script = "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
        scrolled, seen = opened.execute_script(script)
        assert scrolled == seen >= width - 20
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_theme_follows_the_system_and_can_be_switched(opened: Any, page: Path) -> None:
    def ground() -> str:
        script = "return getComputedStyle(document.documentElement).backgroundColor"
        return str(opened.execute_script(script))

    found = {}
    for theme in ("dark", "light"):
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        open_page(opened, page)
        found[theme] = ground()
    assert found["dark"] != found["light"]
    find(opened, "#theme").click()
    assert ground() == found["dark"]
    find(opened, "#theme").click()
    assert ground() == found["light"]
    assert console(opened) == []


# --- The table -------------------------------------------------------------------------------


def test_it_sorts_with_unknown_values_last_either_way(opened: Any) -> None:
    head = find(opened, "[data-key=similarity] button")
    head.click()
    rising = [float(value.replace("−", "-")) for value in column(opened, "similarity")]
    assert rising == sorted(rising) and rising[0] < 0
    assert find(opened, "[data-key=similarity]").get_attribute("aria-sort") == "ascending"
    head.click()
    falling = [float(value.replace("−", "-")) for value in column(opened, "similarity")]
    assert falling == sorted(falling, reverse=True) and falling[0] > rising[0]
    opened.execute_script("document.getElementById('grid').scrollTop = 1e6")
    opened.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert column(opened, "similarity")[-1] == "–"


@pytest.mark.parametrize(("name", "known"), [("forecast", 60), ("lift", 48)])
def test_forecast_and_lift_are_columns_that_sort(opened: Any, name: str, known: int) -> None:
    head = find(opened, f"[data-key={name}] button")
    head.click()
    head.click()
    shown = column(opened, name)
    falling = [float(value.replace("−", "-")) for value in shown]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == {"forecast": 0.8, "lift": 2.0}[name]
    opened.execute_script("document.getElementById('grid').scrollTop = 1e6")
    opened.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert (column(opened, name)[-1] == "–") == (known < 60)


def test_it_filters_by_tag_source_and_pass_rate(opened: Any) -> None:
    assert status(opened) == "60 items"
    find(opened, "[data-tag=learnable]").click()
    assert status(opened) == "12 of 60 items"
    assert set(column(opened, "tag")) == {"learnable"}
    find(opened, "[data-tag=easy]").click()
    assert status(opened) == "24 of 60 items"
    find(opened, "[data-limit=low]").send_keys("0.5")
    assert status(opened) == "12 of 60 items" and set(column(opened, "tag")) == {"easy"}
    find(opened, ".choices select option[value='1']").click()
    assert status(opened) == "4 of 60 items" and len(set(column(opened, "source-0"))) == 1
    find(opened, "#clear").click()
    assert status(opened) == "60 items"


def test_it_searches_prompts_answers_and_ids(opened: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    search = find(opened, "#search")
    for words, expected in (("IS 17 +", 1), (item_id(7)[2:12], 1), ("no such thing", 0)):
        search.clear()
        search.send_keys(words)
        text = f"{expected} of 60 items"
        WebDriverWait(opened, 10).until(lambda each, text=text: status(each) == text)
    assert find(opened, "#grid .none").text == "No item matches."


# --- One item --------------------------------------------------------------------------------


def test_an_item_opens_by_mouse(opened: Any) -> None:
    find(opened, "#grid .row[data-item='1']").click()
    dialog = find(opened, "dialog[open]")
    assert "learnable" in find(opened, "#item-title").text
    text = dialog.text
    assert "pass rate 0.0938 (3 of 32 rollouts)" in text  # The reason, in its own words.
    assert "What is 1 + 1?" in text and "Nearest easy items" in text
    articles = [each.text for each in dialog.find_elements("css selector", "article")]
    assert [text.split(" · ")[0] for text in articles] == ["correct"] * 3 + ["wrong"] * 4
    assert "Completion 2 of item 1." in articles[2] and "sample 3" in articles[3]
    assert "Shown: 4 of 29 wrong" in text
    assert "0.400 after training (0.200 to 0.700, 90 %)" in text
    assert "2.00 (1.50 to 2.50), of which others teach 1.00" in text
    # Its three teachers, the one item that it helps, and the three nearest; it hurts none.
    links = dialog.find_elements("css selector", ".nearest button")
    assert len(links) == 3 + 1 + 3
    assert "Its strongest teachers" in text and "Items that it hurts" not in text
    assert all(each.text.split()[1].startswith("+0.") for each in links[:3])
    links[1].click()
    assert "What is 5 + 5?" in find(opened, "dialog[open]").text
    find(opened, "#close").click()
    assert not opened.find_elements("css selector", "dialog[open]")
    assert console(opened) == []


def test_a_chart_opens_its_item_where_the_table_has_a_part(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown_items, "MOST_ITEMS", 10)
    monkeypatch.setattr(report_facts, "SHOWN_POINTS", 6)
    forget(driver)
    open_page(driver, report_run(write_report_run(tmp_path / "run"))[0])
    assert " of the 60 items" in find(driver, "#grid-help").text
    opened_id = driver.execute_script(
        "document.querySelectorAll('.point')[5].dispatchEvent(new MouseEvent('click'));"
        "const facts = JSON.parse(document.getElementById('facts-data').textContent);"
        "return facts.certainty.forecast.points.item_id[5]"
    )
    assert f"item {opened_id}" in find(driver, "dialog[open]").text
    assert console(driver) == []


def test_the_keyboard_alone_is_enough(opened: Any) -> None:
    opened.execute_script("document.querySelector('#clear').focus()")
    press(opened, "TAB")
    assert focused(opened) == "grid"
    press(opened, "ARROW_DOWN", "ARROW_DOWN", "END", "HOME", "ARROW_DOWN")
    assert find(opened, "#grid").get_attribute("aria-activedescendant") == "row-1"
    assert find(opened, "#row-1").get_attribute("class") == "row active"
    press(opened, "ENTER")
    assert "What is 1 + 1?" in find(opened, "dialog[open]").text
    press(opened, "ARROW_RIGHT")
    assert "What is 2 + 2?" in find(opened, "dialog[open]").text
    press(opened, "TAB", "TAB", "TAB", "TAB")
    inside = "return document.querySelector('dialog').contains(document.activeElement)"
    assert opened.execute_script(inside)
    press(opened, "ESCAPE")
    assert not opened.find_elements("css selector", "dialog[open]")
    assert focused(opened) == "grid"
    assert find(opened, "#grid").get_attribute("aria-activedescendant") == "row-2"
    press(opened, "PAGE_DOWN", "END")
    assert find(opened, "#grid").get_attribute("aria-activedescendant") == "row-59"
    assert find(opened, "#row-59").is_displayed()
    press(opened, "TAB")
    assert focused(opened) != "grid"
    outline = opened.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_what_is_missing_is_shown_and_opens_an_item(driver: Any, tmp_path: Path) -> None:
    run = with_lengths(write_report_run(tmp_path / "run", 20, prompts=["", "", HOSTILE[0]]))
    page, facts = report_run(run)
    forget(driver)
    open_page(driver, page)
    figures = driver.find_elements("css selector", "figure")
    shown = [each for each in figures if each.text.startswith("Items that would teach each other")]
    shown[0].find_element("css selector", "button").click()
    assert "What is missing: " in find(driver, "dialog[open] .gap").text
    assert facts["certainty"]["gaps"]["reasons"][0]["reason"] in find(driver, ".reasons").text
    assert console(driver) == [] and requests(driver) == [page.resolve().as_uri()]


# --- A run of an earlier version ---------------------------------------------------------------


def test_a_run_of_an_earlier_version_opens_without_a_forecast(driver: Any, tmp_path: Path) -> None:
    run = as_of_an_earlier_version(write_report_run(tmp_path / "run", 20))
    forget(driver)
    open_page(driver, report_run(run)[0])
    words = "tagged by an earlier version of curate: no forecast"
    assert f"Not shown: {words}." in find(driver, "#certainty").text
    assert not driver.find_elements("css selector", "[data-key=forecast]")
    find(driver, "#grid .row[data-item='1']").click()
    assert words in find(driver, "dialog[open] .measures").text
    assert console(driver) == []


# --- After training --------------------------------------------------------------------------


def test_what_training_made_of_the_items_is_shown(driver: Any, tmp_path: Path) -> None:
    run = write_report_run(tmp_path / "run", 20)
    for recipe, seed, clipped in (("baseline", 1, 0.0), ("baseline", 2, 0.0), ("clip", 1, 1e-4)):
        outcomes = [
            {
                "item_id": item_id(each),
                "initial_rollouts": 32,
                "initial_correct": 16 if each % 5 == 0 else 0,
                "final_pass_rate": 0.01 if each % 5 in (2, 3) else 0.5,
                "ever_positive": each % 5 != 3,
            }
            for each in range(20)
        ]
        folder = write_training(run, recipe, seed, outcomes=outcomes)
        rewards = [
            {
                "step": step, "item_id": item_id(each), "rollouts": 8,
                "mean_reward": 0.1 * (each % 5), "clipped_fraction": clipped * (each % 5),
            }
            for step in range(1, 9)
            for each in range(20)
        ]  # fmt: skip
        table = pa.Table.from_pylist(rewards, REWARDS.schema)
        pq.write_table(table, folder / "rewards.parquet")
    confirmed = run_curate("confirm", run)
    assert confirmed.status == 0, confirmed.stderr
    page, facts = report_run(run)
    forget(driver)
    open_page(driver, page)
    text = find(driver, "#certainty").text
    assert facts["certainty"]["confirmation"]["confusion"]["unlearnable"]["unlearnable"] == 4
    assert facts["certainty"]["gradients"]["groups_from"] == "confirmed_trainability"
    assert facts["certainty"]["forecast"]["outcomes"]["hard_items"] == 16
    assert "After GRPO 4 of 4 expected to reach it did, 8 of 8 expected to stay" in text
    rings = "return document.querySelectorAll('.forecast-point .outcome').length"
    dots = "return document.querySelectorAll('.forecast-point circle.fill').length"
    counted = {}
    for choice in ("forecast", "outcome", "both"):
        find(driver, f"[data-choice=marks] option[value={choice}]").click()
        for script in (rings, dots):
            wait(driver, "return document.querySelectorAll('.forecast-point').length === 20")
            counted[choice, script] = driver.execute_script(script)
    assert [counted[choice, rings] for choice in ("forecast", "outcome", "both")] == [0, 20, 20]
    assert [counted[choice, dots] for choice in ("forecast", "outcome", "both")] == [20, 0, 20]
    assert "Predicted against confirmed" in text and "Too few items for a claim" in text
    curves = driver.execute_script(
        "return [...document.querySelectorAll('#certainty figure:has(polyline.curve)')].map(f => ["
        "f.querySelector('h3').textContent, f.querySelectorAll('.curve:not(.seed):not(.baseline)')"
        ".length, f.querySelectorAll('.curve.baseline').length])"
    )
    assert curves == [
        ["Rewards in training: baseline", 4, 0],
        ["Rewards in training: clip", 4, 4],  # Beside those of the baseline.
        ["Clipped tokens in training: clip", 4, 0],
    ]
    assert text.count("Not one token was clipped in the loss.") == 1
    assert "0.1 ‰" in text  # A tick.
    assert "not confirmed" not in text
    find(driver, "#grid .row[data-item='2']").click()
    assert "confirmed unlearnable" in find(driver, "#item-title").text.replace("\n", " ")
    assert console(driver) == []


def test_two_checkpoints_are_shown_side_by_side(driver: Any, tmp_path: Path) -> None:
    base, step50 = (write_report_run(tmp_path / name, 20) for name in ("base", "step50"))
    for run, score in ((base, 2.0), (step50, 3.5)):
        write_quality(run, {item_id(each): score for each in range(0, 20, 5)})
    agreement = {"rollouts": 9, "equal": 0.5, "weighted_kappa": 0.4}
    summary = json.dumps({"model": "<b>judge", "agreement": agreement})
    (step50 / "judging/summary.json").write_text(summary)
    assert run_curate("compare", base, step50).status == 0
    forget(driver)
    open_page(driver, report_run(step50)[0])
    panels = driver.find_elements("css selector", ".panels > div")
    roles = [panel.find_element("css selector", "svg").aria_role for panel in panels]
    assert roles == ["image"] * 5
    rows = panels[4].find_elements("css selector", "svg g:has(.hollow)")
    assert [row.get_attribute("class") for row in rows] == ["easy", "all"]
    assert "+1.50" in panels[4].text and "regression to the mean" in find(driver, "main").text
    told = find(driver, "#certainty").text
    assert "judged by <b>judge," in told and "50.0 % of cases" in told and "kappa 0.40" in told
    left, right = (rows[0].find_element("css selector", c).rect["x"] for c in (".hollow", ".fill"))
    assert left < right
    assert console(driver) == []


# --- Untrusted text --------------------------------------------------------------------------


def test_untrusted_text_does_nothing_but_show(driver: Any, tmp_path: Path) -> None:
    run = write_report_run(
        tmp_path / "run",
        20,
        prompts=HOSTILE,
        completions=HOSTILE,
        names={"dataset": HOSTILE[1], "model": HOSTILE[2]},
        tasks=HOSTILE[:3],
    )
    page, _ = report_run(run)
    forget(driver)
    open_page(driver, page)
    before = driver.execute_script("return document.querySelectorAll('script, img, a').length")
    shown = ""
    for at in range(len(HOSTILE)):
        driver.execute_script(
            "document.querySelector(`#grid .row[data-item='${arguments[0]}']`).click()", at
        )
        shown += driver.execute_script("return document.querySelector('dialog').textContent")
        press(driver, "ESCAPE")
    for text in HOSTILE[:4]:
        assert text in shown
    assert "gold ⟨U+202E⟩:rewsna⟨U+2066⟩ ⟨U+200F⟩no⟨U+200B⟩ space⟨U+FEFF⟩" in shown
    assert "⟨U+0000⟩⟨U+0007⟩ ⟨U+E0041⟩ ${facts} $facts &lt;b&gt; ⟨U+001A⟩|1|2" in shown
    everything = driver.execute_script("return document.body.innerText + document.title")
    assert not any(ord(each) in range(0x202A, 0x202F) for each in everything)
    assert driver.execute_script("return window.hacked") is None
    after = "return document.querySelectorAll('script, img, a').length"
    assert driver.execute_script(after) == before
    assert console(driver) == []
    assert requests(driver) == [page.resolve().as_uri()]


def test_the_policy_stops_what_gets_past(opened: Any) -> None:
    """Were a text ever put in as HTML, the policy would still stop it."""
    with pytest.raises(Exception, match="TrustedHTML"):
        opened.execute_script("document.body.innerHTML = '<img src=x onerror=window.hacked=1>'")
    with pytest.raises(Exception, match="TrustedScript"):
        opened.execute_script("document.body.setAttribute('onclick', 'window.hacked = 1')")
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        opened.execute_async_script(
            "const [address, done] = arguments;"
            "const image = document.createElement('img');"
            "image.onerror = () => fetch(address).catch(() => done());"
            "image.src = address + 'x.png'; document.body.append(image)",
            address,
        )
        server.shutdown()
    assert asked == []
    assert opened.execute_script("return window.hacked") is None
    assert sum("Content Security Policy" in line for line in console(opened)) >= 2


# --- A run of the command --------------------------------------------------------------------


def test_the_report_of_a_real_run_opens(driver: Any, tiny_model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", additions(12))
    run = tmp_path / "run"
    out = tmp_path / "tagged.jsonl"
    assert tag(data, "--model", tiny_model, "--out", out, "--run-dir", run).status == 0
    ran = run_curate("report", run, "-o", tmp_path / "page.html")
    assert ran.status == 0, ran.stderr
    console(driver)
    open_page(driver, tmp_path / "page.html")
    assert status(driver) == "12 items"
    find(driver, "#grid .row").click()
    assert "what is 0 + 0 ?" in find(driver, "dialog[open]").text
    assert console(driver) == []
