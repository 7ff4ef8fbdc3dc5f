import csv
import json
import statistics

import numpy as np
import pytest
import torch

from medsam_tune.evaluation.measures import CaseMeasures
from medsam_tune.evaluation.summary import pick_cases, pick_slices, summarise, write_case_table
from medsam_tune.metrics.overlap import OverlapMetric

NAMES = ("a", "b", "c", "d")
LABELS = {1: "anterior", 2: "posterior"}
# sample, case, label, object, tp, fp, fn
ROWS = (
    (0, 0, 1, 0, 8, 2, 0),  # case a, label 1: two slices, pooled 8 / 2 / 4 -> Dice 16/22
    (1, 0, 1, 0, 0, 0, 4),
    (1, 0, 2, 1, 3, 1, 1),  # case a, label 2: 6/8
    (2, 1, 1, 0, 5, 5, 5),  # case b: 10/20
    (3, 2, 1, 0, 0, 0, 0),  # case c: excluded
    (4, 3, 1, 0, 0, 7, 0),  # case d: 0
)
CASE_DICE = ((16 / 22 + 6 / 8) / 2, 0.5, 0.0)


def scores_of(rows):
    metric = OverlapMetric()
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 7)
    metric.update(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4:])
    return metric.scores()


def test_headline_is_over_cases_with_the_samples_standard_deviation():
    summary = summarise(scores_of(ROWS), NAMES, LABELS)
    assert summary["dice"]["mean"] == pytest.approx(statistics.mean(CASE_DICE))
    assert summary["dice"]["std"] == pytest.approx(statistics.stdev(CASE_DICE))
    low, high = summary["dice"]["ci95"]
    # Student's t of two degrees of freedom, 4.303, would give -0.52 to 1.35.
    assert (low, high) == (0.0, 1.0)
    assert summary["dice"]["ci95_method"] == "t"
    assert (summary["n_cases"], summary["n_excluded"], summary["excluded_cases"]) == (3, 1, ["c"])


def test_interval_counts_patients_where_several_cases_are_of_one():
    summary = summarise(scores_of(ROWS), NAMES, LABELS, ("p", "p", "q", "q"))
    assert (summary["n_cases"], summary["n_patients"]) == (3, 2)
    assert summary["dice"]["mean"] == pytest.approx(statistics.mean(CASE_DICE))
    anterior = summary["per_label"]["anterior"]
    assert (anterior["n_cases"], anterior["n_patients"]) == (3, 2)


def test_patients_weigh_alike_in_a_mean_of_their_own():
    summary = summarise(scores_of(ROWS), NAMES, LABELS, ("p", "p", "q", "q"))
    assert summary["patients"]["dice"]["mean"] == pytest.approx(((CASE_DICE[0] + CASE_DICE[1]) / 2 + 0.0) / 2)
    assert "patients" not in summarise(scores_of(ROWS), NAMES, LABELS)


def test_a_rare_target_weighs_as_much_as_a_frequent_one():
    summary = summarise(scores_of(ROWS), NAMES, LABELS)
    anterior = statistics.mean((16 / 22, 0.5, 0.0))
    assert summary["balanced"]["dice"]["mean"] == pytest.approx((anterior + 0.75) / 2)
    assert summary["balanced"]["n_targets"] == 2
    assert "per_data_set" not in summary


def test_data_sets_are_the_first_folders_of_names():
    summary = summarise(scores_of(ROWS), ("x/a", "y/b", "y/c", "y/d"), LABELS)
    assert summary["per_data_set"]["y"]["dice"]["mean"] == pytest.approx(0.25)
    assert (summary["per_data_set"]["x"]["n_cases"], summary["balanced"]["n_targets"]) == (1, 3)
    assert summary["balanced"]["dice"]["mean"] == pytest.approx((16 / 22 + 0.75 + 0.25) / 3)


def test_false_positives_on_slices_without_the_organ_count():
    rows = [(0, 0, 1, 0, 8, 0, 0), (1, 0, 1, 0, 0, 4, 0), (2, 0, 1, 0, 0, 0, 0)]
    summary = summarise(scores_of(rows), NAMES, LABELS)
    assert summary["dice"]["mean"] == pytest.approx(16 / 20)
    label = summary["per_label"]["anterior"]
    assert (label["empty_slices"], label["false_positive_slices"]) == (2, 1)


def test_labels_and_slices_stand_beside_it():
    summary = summarise(scores_of(ROWS), NAMES, LABELS)
    posterior = summary["per_label"]["posterior"]
    assert posterior["dice"] == {"mean": pytest.approx(0.75), "std": None, "ci95": None, "ci95_method": None}
    assert summary["per_label"]["anterior"]["n_excluded"] == 1
    assert summary["slices"]["n"] == 5
    assert summary["slices"]["dice"]["mean"] == pytest.approx((16 / 18 + 0 + 0.75 + 0.5 + 0) / 5)


def test_nothing_scored_gives_none_and_valid_json():
    summary = summarise(scores_of([(0, 0, 1, 0, 0, 0, 0)]), NAMES, {})
    assert summary["dice"] == {"mean": None, "std": None, "ci95": None, "ci95_method": None}
    assert list(json.loads(json.dumps(summary, allow_nan=False))["per_label"]) == ["label 1"]


def test_case_table_holds_one_row_per_case_and_label(tmp_path):
    hd95, sizes = np.array([2.5, 1.0, 0.0, np.nan, np.inf]), np.array([12.0, 4.0, 10.0, 0.0, 0.0])
    nothing, counts = np.full(5, np.nan), np.array([1, 0, 0, 1, 1])
    measures = CaseMeasures(
        hd95,
        ("mm", "mm", "px", "px", "px"),
        sizes / 10,
        sizes,
        ("ml", "mm2", "px", "px", "px"),
        hd=2 * hd95,
        asd=hd95 / 2,
        nsd=np.array([0.9, 1.0, 1.0, np.nan, 0.0]),
        tolerance=2.0,
        s_measure=nothing,
        aji=nothing,
        pixel_f=nothing,
        empty_slices=counts,
        false_positive_slices=counts,
    )
    people, scores = ("p", "p", "q", "q"), scores_of(ROWS)
    untuned = {(int(scores.case_index[0]), int(scores.label[0])): 0.25}
    path = write_case_table(tmp_path / "test_cases.csv", scores, measures, NAMES, LABELS, people, untuned=untuned)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert rows[0] == {
        "case": "a",
        "label": "anterior",
        "n_slices": "2",
        "tp": "8",
        "fp": "2",
        "fn": "4",
        "dice": "0.727273",
        "iou": "0.571429",
        "hd95": "2.500000",
        "hd95_unit": "mm",
        "true_size": "1.200000",
        "predicted_size": "12.000000",
        "size_unit": "ml",
        "excluded": "false",
        "patient": "p",
        "size_difference": "10.800000",
        "hd": "5.000000",
        "asd": "1.250000",
        "nsd": "0.900000",
        "s_measure": "",
        "aji": "",
        "pixel_f": "",
        "empty_slices": "1",
        "false_positive_slices": "1",
        "untuned_dice": "0.250000",
    }
    assert rows[1]["untuned_dice"] == ""
    assert [(row["case"], row["dice"], row["hd95"], row["excluded"]) for row in rows[2:]] == [
        ("b", "0.500000", "0.000000", "false"),
        ("c", "", "", "true"),
        ("d", "0.000000", "inf", "false"),
    ]


def test_best_median_and_worst_case_are_picked_by_dice():
    assert pick_cases(scores_of(ROWS)) == [("best", 0), ("median", 1), ("worst", 3)]
    assert pick_cases(scores_of(ROWS[3:4])) == [("only", 1)]
    assert pick_cases(scores_of([ROWS[5], ROWS[3]])) == [("best", 1), ("worst", 3)]
    assert pick_cases(scores_of(ROWS[4:5])) == []


def test_slices_with_most_foreground_are_kept_in_order():
    rows = [(sample, 0, 1, 0, 0, area, 0) for sample, area in enumerate((3, 9, 1, 7, 5))]
    other_case = (9, 1, 1, 0, 50, 0, 0)
    assert pick_slices(scores_of([*rows, other_case]), 0, count=3) == [1, 3, 4]


def test_foreground_of_a_slice_is_true_and_predicted_pixels_over_its_labels():
    # Sample 5: truth 4 + 4, prediction 4; sample 6: truth 5, prediction 5; sample 7: truth 6, prediction 5.
    rows = [(5, 0, 1, 0, 4, 0, 0), (5, 0, 2, 1, 0, 0, 4), (6, 0, 1, 0, 5, 0, 0), (7, 0, 1, 0, 5, 0, 1)]
    assert pick_slices(scores_of(rows), 0, count=2) == [5, 7]
    assert pick_slices(scores_of(rows), 0, count=1) == [5]
