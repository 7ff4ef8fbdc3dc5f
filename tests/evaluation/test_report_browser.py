"""The report's script in a real browser: sorting, enlarging, opening a case by its link."""

import html
import json
import re
import shutil
import subprocess

import pytest

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


@pytest.mark.slow  # a browser takes seconds to start
@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome to open the report in")
def test_report_sorts_enlarges_and_opens_in_a_browser(tmp_path):
    page = write_report(tmp_path / "report", CONTENT)
    clicked = page.with_name("clicked.html")
    clicked.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{CLICKS}</body>"), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=3000",
        "--disable-extensions",
    ]
    shown = subprocess.run(
        [BROWSER, *options, "--dump-dom", clicked.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    (title,) = re.findall("<title>seen (.*)</title>", shown)
    seen = json.loads(html.unescape(title))
    # Dice 0.2, 0.7 and none, which comes last whichever way the others are sorted.
    assert seen["asWritten"] == ["case_<i>", "case_07", "case_01"]
    assert seen["ascending"] == [["case_<i>", "case_07", "case_01"], "ascending"]
    assert seen["descending"] == [["case_07", "case_<i>", "case_01"], "descending"]
    assert seen["byName"] == [["case_<i>", "case_01", "case_07"], None]
    assert (seen["enlarged"], seen["other"], seen["escaped"]) == ([0], [1], [])
    assert seen["opened"] is True
