import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from medsam_tune.errors import DataError
from medsam_tune.evaluation.page import plain
from medsam_tune.evaluation.page_design import SCRIPT
from medsam_tune.evaluation.report import PAGE_LIMIT_BYTES, DataContent, ReportContent, write_report
from medsam_tune.evaluation.report_cases import CasePanel, CaseRow, ShownCase

PNG = b"\x89PNG picture"
FIGURES = {"mean": 0.8612, "std": 0.04, "ci95": [0.84, 0.88], "ci95_method": "t"}
GAIN = {"mean": 0.0912, "ci95": [0.05, 0.132], "ci95_method": "t", "n_cases": 9, "n_patients": 9, "verdict": "better"}
TEST = {
    "dice": FIGURES,
    "iou": {"mean": 0.75, "std": None, "ci95": None},
    "n_cases": 9,
    "n_patients": 9,
    "n_excluded": 2,
    "per_label": {"object": {"empty_slices": 12, "false_positive_slices": 4}},
    "slices": {"dice": {"mean": 0.8, "std": 0.1}, "n": 90},
    "nsd": {"mean": 0.9123, "std": 0.02, "ci95": [0.9, 0.92], "ci95_method": "t", "n_cases": 9, "tolerance": 2.0, "unit": "mm"},
    "size_difference": {"mean": -0.25, "mean_absolute": 0.5, "unit": "ml"},
    "balanced": {"dice": {"mean": 0.8432, "std": 0.1}, "n_targets": 3},
    "hd95": {"mean": 3.456, "median": 2.0, "std": 1.0, "n": 8, "n_infinite": 1, "unit": "mm"},
}
MOVED = {
    "share": 0.1,
    "dice": {"tuned": FIGURES | {"mean": 0.8311}, "untuned": FIGURES | {"mean": 0.7022}},
    "minus_exact": {"tuned": GAIN | {"mean": -0.0301, "ci95": None}, "untuned": GAIN | {"mean": -0.068, "ci95": None}},
}
ROW = CaseRow("case_07", "object", 3, 0.7, 0.54, 2.513, "mm", 3.25, 3.5, "ml", untuned_dice=0.61, nsd=0.88)
ROWS = [replace(ROW, case="case_<i>", dice=0.2, hd95=float("inf")), ROW, replace(ROW, case="case_01", dice=None, hd95=None)]
SHOWN = [ShownCase("case_<i>", "Worst: case_<i>, Dice 0.200", is_open=True), ShownCase("case_07", "case_07, Dice 0.700")]
PANELS = [
    CasePanel("case_<i>", "<svg></svg>", "slice <1>: Dice 0.2", position=1),
    CasePanel("case_07", "<svg></svg>", "slice 5", position=5),
    CasePanel("case_07", "<svg></svg>", "slice 4", position=4, is_picked=False),
]
CONTENT = ReportContent(
    title="autosam <script>alert(1)</script>",
    data_name="the bundled sample <u>",
    description={"method": "first line & last"},
    trained=[("prompt_encoder", 250, 250), ("backbone", 0, 750)],
    data=DataContent(
        facts={"root": "<i>folder</i>", "window": (-160.0, 240.0)},
        splits={"train": {"cases": 28, "images": 1084}, "test": {"cases": 9}},
        labels=[("anterior", 12, 14, "102")],
        size_unit="mm\u00b2",
        histogram=PNG,
        samples=[CasePanel("case_00", "<svg></svg>", "a training image")],
        attribution="from <b>there</b>",
    ),
    test=TEST,
    baselines={
        "same_prompts": TEST | {"dice": {"mean": 0.77, "std": 0.1, "ci95": None}, "tuned_minus_this": GAIN},
        "oracle_box": TEST | {"dice": {"mean": 0.79, "std": 0.1, "ci95": None}, "tuned_minus_this": GAIN | {"ci95": None}},
    },
    verdict={"text": "Better than the untuned network <b>", "verdict": "better", "against": "same_prompts"},
    moved_boxes=MOVED,
    calibration={
        "ece": {"mean": 0.0567, "std": 0.01, "ci95": None, "ci95_method": None},
        "bins": [
            {"pixels": 10, "probability": 0.25, "object_share": 0.2},
            {"pixels": 90, "probability": 0.9, "object_share": 1.0},
        ],
        "uncertainty": {"kind": "box_ensemble", "spearman": 0.42, "n_cases": 9},
        "selective": {"kept": 0.8811, "all": 0.8612, "n_dropped": 1},
        "untuned": {"ece": {"mean": 0.1234}, "bins": [{"pixels": 7, "probability": 0.5, "object_share": 0.1}]},
    },
    doubts=[("case_<i>", 0.4, 0.2), ("case_07", 0.1, 0.7)],
    untuned_doubts=[("case_07", 0.9, 0.61)],
    packages="torch==2.15.0",
    curves=PNG,
    cases=ROWS,
    shown=SHOWN,
    panels=PANELS,
    settings={"trainer.max_epochs": 7},
    reload_code='predictor = medsam_tune.load_export("runs/a/export")',
    predict_command="medsam-tune predict runs/a INPUT -o OUT",
    run_command="medsam-tune run recipes/autosam.yaml",
    config="model: <hidden>",
    facts={"Time": {"fit": "243.1 s"}, "Versions": {"torch": "2.15.0"}, "Nothing": {}},
    files={"config.yaml": "../config.yaml"},
    citations="@misc{a, title = {<b>}}",
)


class Words(HTMLParser):
    """Collect text and tags, and check that what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
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
    text = "\n".join(read(tmp_path).text).replace("\n \n(", " (")  # a figure and its interval
    for expected in (
        "0.861",
        "95 % interval 0.840 to 0.880",
        "untuned, same prompts",
        "untuned, oracle box",
        "+0.091 (+0.050 to +0.132)",
        "0.770",
        "3.46 mm",
        "NSD within 2 mm",
        "0.912",
        "95 % interval 0.900 to 0.920",
        "size, predicted minus true (ml)",
        "0.5 without its sign",
        "Dice, mean over targets",
        "0.843",
        "something was found on 4 of them",
        "0.057",
        "+0.42",
        "Dice without the least certain case, 0.861 with",
        "tuned: 90 pixels of probability 0.90",
        "mean over cases; untuned 0.123",
        "case_<i>: Dice 0.200, 0.400 bits",
        "torch==2.15.0",
        "+0.25",
        "mean of 8; 1 more is infinite",
        "25 %",
        "1,084",
        "-160, 240",
        "Worst: case_<i>, Dice 0.200",
        "1 further slice",
        'load_export("runs/a/export")',
        "medsam-tune predict runs/a INPUT -o OUT",
        "medsam-tune run recipes/autosam.yaml",
        "trainer.max epochs",
        "243.1 s",
        "2.15.0",
        "2 pairs of case and label",
        "0.800 over 90 slices",
        "median size (mm\u00b2)",
        "model: <hidden>",
    ):
        assert expected in text
    assert "Nothing" not in text


def test_text_from_outside_is_escaped(tmp_path):
    words = read(tmp_path)
    assert not {"b", "i", "u"} & {tag for tag, _ in words.tags if tag != "b"}
    assert [tag for tag, _ in words.tags].count("b") == 8  # the figures of the tiles
    assert [tag for tag, _ in words.tags].count("script") == 1
    assert SCRIPT in words.text
    for text in ("autosam <script>alert(1)</script>", "<i>folder</i>", "case_<i>", "slice <1>: Dice 0.2", "from <b>there</b>"):
        assert text in words.text


def test_page_needs_no_other_file(tmp_path):
    tags = read(tmp_path).tags
    sources = [attributes["src"] for _, attributes in tags if "src" in attributes]
    assert sources == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"] * 2
    links = [attributes["href"] for tag, attributes in tags if "href" in attributes]
    assert {link for link in links if not link.startswith("#")} == {"../config.yaml"}
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", page)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_every_link_within_the_page_leads_somewhere(tmp_path):
    tags = read(tmp_path).tags
    targets = {attributes["id"] for _, attributes in tags if "id" in attributes}
    assert {attributes["href"][1:] for tag, attributes in tags if tag == "a" and attributes["href"].startswith("#")} <= targets
    assert len(targets) == sum("id" in attributes for _, attributes in tags)


def test_cases_can_be_sorted_by_numbers_and_lead_to_their_slices(tmp_path):
    words = read(tmp_path)
    text = words.text
    first = text.index("case", text.index("Test cases"))
    assert text[first : first + 10] == [
        *("case", "slices", "Dice", "untuned Dice", "IoU", "HD95 (mm)", "NSD", "true size (ml)", "predicted size (ml)"),
        "difference",
    ]
    values = [float(attributes["data-value"]) for tag, attributes in words.tags if tag == "td" and "data-value" in attributes]
    assert {0.2, 0.7, 2.513, 1e9} <= {round(value, 4) for value in values}
    assert "\N{INFINITY}" in text
    assert [attributes.get("id") for tag, attributes in words.tags if tag == "details" and "id" in attributes] == [
        "case-0",
        "case-1",
    ]


def test_plots_stand_in_the_page_and_take_its_colours(tmp_path):
    text = write_report(tmp_path / "report", CONTENT).read_text(encoding="utf-8")
    plots = re.findall(r'<svg class="plot".*?</svg>', text)
    assert [plot.count("<circle") for plot in plots] == [3, 3]
    assert all('class="dot other"' in plot for plot in plots)
    assert "case_07, untuned: Dice 0.610, 0.900 bits" in plots[1]
    assert not any("fill=" in plot or "style=" in plot for plot in plots)
    assert "How sure it is" not in "\n".join(read(tmp_path, replace(CONTENT, calibration={})).text)


def test_pictures_that_have_no_room_are_left_out_and_counted(tmp_path):
    drawn = []

    def panels():
        for number in range(40):
            drawn.append(number)
            yield CasePanel(f"case_{number}", f"<svg>{'x' * 200_000}</svg>", "a slice")

    shown = [ShownCase(f"case_{number}", f"case_{number}") for number in range(40)]
    path = write_report(tmp_path / "report", replace(CONTENT, shown=shown, panels=panels()))
    assert PAGE_LIMIT_BYTES - 250_000 < path.stat().st_size <= PAGE_LIMIT_BYTES
    page = path.read_text(encoding="utf-8")
    assert len(drawn) == page.count('<figure class="panel"')  # a training image stands for the one that found no room
    assert f"Shown are {len(drawn) - 1} of 40 slices, of {len(drawn) - 1} of 40 cases, failures first." in page


def test_cases_of_one_image_stand_side_by_side(tmp_path):
    words = read(tmp_path, replace(CONTENT, panels=PANELS[:2]))
    assert [attributes["id"] for tag, attributes in words.tags if tag == "figure" and "id" in attributes] == [
        "case-0",
        "case-1",
    ]
    assert "Worst: case_<i>, Dice 0.200 (slice <1>: Dice 0.2)" in words.text


def test_a_badly_drawn_box_stands_beside_the_exact_one(tmp_path):
    text = read(tmp_path).text
    start = text.index("moved minus as drawn")
    assert [each for each in text[start + 1 :] if each.strip()][:8] == [
        "tuned",
        "0.861",
        "0.831",
        "-0.030",
        "untuned",
        "0.770",
        "0.702",
        "-0.068",
    ]
    assert any("moved by 10 % of the box's width or height" in words for words in text)
    assert "How much a badly drawn box costs" not in read(tmp_path, replace(CONTENT, moved_boxes={})).text


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
    assert text.index("Better than the untuned network <b>") < text.index("first line & last")
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
