import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from medsam_tune.errors import DataError
from medsam_tune.evaluation.page import plain
from medsam_tune.evaluation.report import CaseFigure, ReportContent, write_report

PNG = b"\x89PNG picture"
FIGURES = {"mean": 0.8612, "std": 0.04, "ci95": [0.84, 0.88], "ci95_method": "t"}
GAIN = {"mean": 0.0912, "ci95": [0.05, 0.132], "ci95_method": "t", "n_cases": 9, "n_patients": 9, "verdict": "better"}
TEST = {
    "dice": FIGURES,
    "iou": {"mean": 0.75, "std": None, "ci95": None},
    "n_cases": 9,
    "n_patients": 9,
    "n_excluded": 2,
    "per_label": {},
    "slices": {"dice": {"mean": 0.8, "std": 0.1}, "n": 90},
}
CONTENT = ReportContent(
    title="autosam <script>alert(1)</script>",
    description="first line\nsecond & last",
    trained=[("prompt_encoder", 250, 250), ("backbone", 0, 750)],
    data={"root": "<i>folder</i>", "window": (-160.0, 240.0)},
    splits={"train": {"cases": 28, "images": 1084}, "test": {"cases": 9}},
    test=TEST,
    baselines={
        "same_prompts": TEST | {"dice": {"mean": 0.77, "std": 0.1, "ci95": None}, "tuned_minus_this": GAIN},
        "oracle_box": TEST | {"dice": {"mean": 0.79, "std": 0.1, "ci95": None}, "tuned_minus_this": GAIN | {"ci95": None}},
    },
    verdict="Better than the untuned network <b>",
    curves=PNG,
    cases=[CaseFigure("Worst: case_07", "Dice 0.70", PNG)],
    reload_code='predictor = medsam_tune.load_export("runs/a/export")',
    run_command="medsam-tune run recipes/autosam.yaml",
    versions={"torch": "2.15.0"},
    seconds={"fit": 243.1},
)


class Words(HTMLParser):
    """Collect text and tags, and check that what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(folder, content=CONTENT):
    words = Words()
    words.feed(write_report(folder / "report", content).read_text(encoding="utf-8"))
    assert words.open == []
    return words


def test_every_figure_and_command_stands_on_the_page(tmp_path):
    text = "\n".join(read(tmp_path).text)
    for expected in (
        "0.861",
        "95 % interval 0.840 to 0.880",
        "untuned, same prompts",
        "untuned, oracle box",
        "+0.091 (+0.050 to +0.132)",
        "0.770",
        "25 %",
        "1,084",
        "-160, 240",
        "Worst: case_07",
        'load_export("runs/a/export")',
        "medsam-tune run recipes/autosam.yaml",
        "243.1 s",
        "2.15.0",
        "2 pairs of case and label",
        "0.800 over 90 slices",
    ):
        assert expected in text


def test_text_from_outside_is_escaped(tmp_path):
    words = read(tmp_path)
    assert not {"script", "i"} & {tag for tag, _ in words.tags}
    assert "autosam <script>alert(1)</script>" in words.text
    assert "<i>folder</i>" in words.text


def test_page_needs_no_other_file(tmp_path):
    sources = [value for _, attributes in read(tmp_path).tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"] * 2
    assert not re.search(r"https?://", (tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_what_is_empty_is_left_out(tmp_path):
    words = read(tmp_path, ReportContent(title="only a title"))
    assert [tag for tag, _ in words.tags if tag in ("h1", "h2", "table", "img")] == ["h1"]


def test_labels_get_a_table_of_their_own_where_there_are_several(tmp_path):
    one = {"dice": FIGURES, "iou": FIGURES, "n_cases": 9, "n_patients": 9, "n_excluded": 0}
    assert "By label" not in read(tmp_path, replace(CONTENT, test=TEST | {"per_label": {"anterior": one}})).text
    text = read(tmp_path, replace(CONTENT, test=TEST | {"per_label": {"anterior": one, "posterior": one}})).text
    assert {"By label", "anterior", "posterior"} <= set(text)


def test_nothing_scored_is_shown_as_absent(tmp_path):
    nothing = {"mean": None, "std": None, "ci95": None}
    words = read(tmp_path, replace(CONTENT, test=TEST | {"dice": nothing, "iou": nothing, "n_cases": 0, "n_patients": 0}))
    assert words.text.count("\N{EN DASH}") >= 6


@pytest.mark.parametrize(("method", "said"), [("t", "by Student's t."), ("bca", "by the BCa bootstrap.")])
def test_page_says_what_made_the_intervals(tmp_path, method, said):
    test = TEST | {"dice": FIGURES | {"ci95_method": method}}
    assert any(text.endswith(f"Intervals are over cases, {said}") for text in read(tmp_path, replace(CONTENT, test=test)).text)


def test_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(DataError, match="choose another folder"):
        write_report(tmp_path / "report", CONTENT)


def test_values_are_written_as_a_reader_would():
    assert (
        plain({"window_hu": (-160.0, 240.5), "cases": 12345, "cropped": True})
        == "window hu -160, 240.5, cases 12,345, cropped True"
    )
    assert plain(None) == "none"


def test_verdict_stands_first_and_the_network_asked_alike_above_the_tuned_one(tmp_path):
    text = read(tmp_path).text
    assert text.index("Better than the untuned network <b>") < text.index("first line\nsecond & last")
    rows = [text.index(name) for name in ("untuned, same prompts", "tuned", "untuned, oracle box")]
    assert rows == sorted(rows)


def test_kinds_of_inference_stand_side_by_side(tmp_path):
    assert "By kind of inference" not in read(tmp_path).text
    other = TEST | {"dice": {"mean": 0.123, "std": 0.1, "ci95": None}}
    text = read(tmp_path, replace(CONTENT, inference={"raw": TEST, "min_entropy": other})).text
    assert {"By kind of inference", "raw", "min entropy", "0.123"} <= set(text)


@pytest.mark.parametrize(("trained", "said"), [(1000, "100 %"), (250, "25 %"), (17, "1.7 %")])
def test_share_of_trained_parameters_is_written_for_people(tmp_path, trained, said):
    assert said in read(tmp_path, replace(CONTENT, trained=[("network", trained, 1000)])).text
