"""Means over cases, objects and targets, each computed by hand."""

import pytest

from medsam_tune.protocols.studies import HuangProtocol, MazurowskiProtocol
from medsam_tune.protocols.summary import summarise_rows
from medsam_tune.protocols.sweep import PromptsProtocol


def row(case, label, dice, *, number=0, **others):
    facts = {"model": "m", "case": case, "patient": case, "image": case, "label": label, "object": f"{label}/{number}"}
    return {**facts, "strategy": "box", "level": 0.0, "draw": 0, "selection": "token0", "dice": dice, "iou": dice / 2, **others}


def test_cases_objects_and_targets_are_weighed_each_in_their_way():
    # Case a: 0.2, 0.4, 0.9; case b: 0.5. By case (0.5 + 0.5) / 2; by object 2.0 / 4.
    # By target: liver 0.9, nodule (0.3 + 0.5) / 2.
    rows = [row("a", "nodule", 0.2), row("a", "nodule", 0.4, number=1), row("a", "liver", 0.9), row("b", "nodule", 0.5)]
    entry = summarise_rows(rows, PromptsProtocol())["entries"][0]
    assert entry["dice"]["mean"] == pytest.approx(0.5)
    assert entry["by_object"]["dice"] == pytest.approx(0.5)
    assert entry["by_target"]["dice"] == pytest.approx((0.9 + 0.4) / 2)
    assert entry["per_label"]["nodule"]["dice"]["mean"] == pytest.approx(0.4)
    assert (entry["n_objects"], entry["n_cases"], entry["oracle"]) == (4, 2, False)


def test_patients_and_data_sets_have_figures_of_their_own():
    cases = (("ct/a", "p", 0.1), ("ct/b", "p", 0.3), ("mr/c", "q", 0.8))
    entry = summarise_rows([row(case, "x", dice, patient=patient) for case, patient, dice in cases], PromptsProtocol())[
        "entries"
    ][0]
    assert entry["dice"]["mean"] == pytest.approx(0.4)
    # Patient p has 0.2, q 0.8; data set ct 0.2, mr 0.8; x in ct and x in mr are two targets.
    assert entry["by_patient"]["dice"]["mean"] == pytest.approx(0.5)
    assert {name: found["dice"]["mean"] for name, found in entry["per_data_set"].items()} == pytest.approx(
        {"ct": 0.2, "mr": 0.8}
    )
    assert entry["by_target"]["dice"] == pytest.approx(0.5)
    alone = summarise_rows([row("a", "x", 0.1), row("b", "x", 0.3)], PromptsProtocol())["entries"][0]
    assert not {"by_patient", "per_data_set"} & set(alone)


def test_draws_of_an_object_are_averaged_before_it_counts():
    rows = [row("a", "x", 0.1), row("a", "x", 0.3, draw=1), row("a", "x", 0.8, number=1)]
    entry = summarise_rows(rows, PromptsProtocol())["entries"][0]
    assert entry["n_objects"] == 2
    assert entry["by_object"]["dice"] == pytest.approx((0.2 + 0.8) / 2)


def test_cases_of_a_patient_are_one_unit_of_the_interval():
    rows = [
        row(case, "x", dice, patient=patient) for case, patient, dice in (("a", "p", 0.1), ("b", "p", 0.3), ("c", "q", 0.5))
    ]
    entry = summarise_rows(rows, PromptsProtocol())["entries"][0]
    assert entry["n_patients"] == 2
    assert entry["dice"]["mean"] == pytest.approx(0.3)


def test_the_oracle_is_marked():
    entries = summarise_rows([row("a", "x", 0.1), row("a", "x", 0.3, selection="oracle")], PromptsProtocol())["entries"]
    assert [(entry["selection"], entry["oracle"]) for entry in entries] == [("token0", False), ("oracle", True)]


def test_clicks_are_counted_to_each_threshold():
    shared = {"strategy": "clicks", "error_map": "joined", "selection": "first"}
    fast, slow = (0.5, 0.86, 0.95), (0.2, 0.3, 0.86)
    rows = [
        row(case, "x", 0.0, **shared) | {"clicks": number, "iou": iou}
        for case, ious in (("a", fast), ("b", slow))
        for number, iou in enumerate(ious, start=1)
    ]
    found = summarise_rows(rows, MazurowskiProtocol())["clicks_needed"]
    # 0.85: after 2 and 3 clicks; 0.90: after 3, and never, which counts as 3.
    assert [(each["iou"], each["clicks"], each["reached"]) for each in found] == [(0.85, 2.5, 1.0), (0.9, 3.0, 0.5)]


def test_correlations_hold_the_other_attributes_still():
    rows = [
        row(str(number), "x", 0.5 + 0.03 * number, displacement="")
        | {"strategy": "S5", "area": (7 * number) % 12, "aspect": (5 * number) % 12, "fourier_order": (11 * number) % 13}
        | {"contrast": number}
        for number in range(12)
    ]
    found = summarise_rows(rows, HuangProtocol())["correlations"]
    assert {each["attribute"]: each["rho"] for each in found}["contrast"] == pytest.approx(1.0)
    assert all(each["n"] == 12 for each in found)
    few = summarise_rows(rows[:9], HuangProtocol())
    assert few["correlations"] == []
