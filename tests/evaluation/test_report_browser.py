"""The report's script in a real browser: sorting, enlarging, opening a case by its link."""

import html
import json
import re
import shutil
import subprocess

import pytest

from medsam_tune.evaluation.case_tables import CaseTable, compare_in_pairs
from medsam_tune.evaluation.comparison_page import ComparedRun, ComparisonContent, write_comparison
from medsam_tune.evaluation.report import write_report
from tests.evaluation.test_report import CONTENT

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))), None
)

# Clicks as a reader would, and writes down what the page then shows.
CLICKS = """
<script>
const seen = {};
const table = document.querySelector("table.sortable");
const first = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim());
const heads = [...table.querySelectorAll("th")];
const column = heads.findIndex(head => head.textContent.trim() === "Dice");
seen.asWritten = first();
heads[column].querySelector("button").click();
seen.ascending = [first(), heads[column].getAttribute("aria-sort")];
heads[column].querySelector("button").click();
seen.descending = [first(), heads[column].getAttribute("aria-sort")];
heads[0].querySelector("button").click();
seen.byName = [first(), heads[column].getAttribute("aria-sort")];
const panels = [...document.querySelectorAll(".panel")];
const large = () => panels.map((panel, place) => panel.classList.contains("large") ? place : -1).filter(place => place >= 0);
panels[0].click();
seen.enlarged = large();
panels[1].click();
seen.other = large();
document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
seen.escaped = large();
const closed = [...document.querySelectorAll("details[id], details [id]")].find(each => !(each.closest("details").open));
location.hash = closed.id;
addEventListener("hashchange", () => {
  seen.opened = closed.closest("details").open;
  document.title = "seen " + JSON.stringify(seen);
});
</script>
"""


# Names each table that a page of 800 px shows a part of alone.
WIDE = """
<script>
const cut = [...document.querySelectorAll(".scroll")].filter(each => each.scrollWidth > each.clientWidth);
document.title = "seen " + JSON.stringify(cut.map(each => each.querySelector("tr").textContent));
</script>
"""


def seen_in_a_browser(page, script):
    """Return what a script writes down in a window of 800 px."""
    opened = page.with_name("opened.html")
    opened.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={page.parent / 'profile'}",
        "--virtual-time-budget=3000",
        "--disable-extensions",
        "--window-size=800,1000",
    ]
    shown = subprocess.run(
        [BROWSER, *options, "--dump-dom", opened.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    (title,) = re.findall("<title>seen (.*)</title>", shown)
    return json.loads(html.unescape(title))


@pytest.mark.slow  # a browser takes seconds to start
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome to open the report in")
def test_no_column_of_a_table_is_out_of_sight_at_800_pixels(tmp_path):
    assert seen_in_a_browser(write_report(tmp_path / "report", CONTENT), WIDE) == []
    dice = {f"case_{number}": 0.8 + 0.01 * number for number in range(4)}
    tables = {
        letter: CaseTable(
            {case: value - loss * value**2 for case, value in dice.items()},
            frozenset(),
            frozenset({"object"}),
            figures={"iou": dice, "nsd": dice, "hd95": dice},
        )
        for letter, loss in (("A", 0.0), ("B", 0.05), ("C", 0.1))
    }
    runs = [ComparedRun(letter, "autosam-seed0", table, 1_386_730, 613.0) for letter, table in tables.items()]
    page = write_comparison(tmp_path / "comparison.html", ComparisonContent(runs, compare_in_pairs(tables)))
    assert seen_in_a_browser(page, WIDE) == []


@pytest.mark.slow  # a browser takes seconds to start
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome to open the report in")
def test_report_sorts_enlarges_and_opens_in_a_browser(tmp_path):
    seen = seen_in_a_browser(write_report(tmp_path / "report", CONTENT), CLICKS)
    # Dice 0.2, 0.7 and none, which comes last whichever way the others are sorted.
    assert seen["asWritten"] == ["case_<i>", "case_07", "case_01"]
    assert seen["ascending"] == [["case_<i>", "case_07", "case_01"], "ascending"]
    assert seen["descending"] == [["case_07", "case_<i>", "case_01"], "descending"]
    assert seen["byName"] == [["case_<i>", "case_01", "case_07"], None]
    assert (seen["enlarged"], seen["other"], seen["escaped"]) == ([0], [1], [])
    assert seen["opened"] is True
