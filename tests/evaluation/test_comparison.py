import pytest
import torch

from medsam_tune.evaluation.comparison import not_compared, paired_difference, verdict_of, verdict_sentence
from medsam_tune.metrics.overlap import OverlapMetric


def scores(*overlaps):
    """Scores of cases 0, 1, ... from (tp, fp, fn)."""
    metric = OverlapMetric()
    numbers = torch.arange(len(overlaps))
    metric.update(numbers, numbers, torch.ones_like(numbers), torch.zeros_like(numbers), torch.tensor(overlaps))
    return metric.scores()


# Dice 0.8, 0.7, 0.6 and 0.5: 2 tp / (2 tp + fp + fn).
TUNED = scores((40, 10, 10), (35, 15, 15), (30, 20, 20), (25, 25, 25))
# 0.69, 0.60, 0.48, 0.39: a gain of 0.11, 0.10, 0.12 and 0.11, though the cases differ by far more.
UNTUNED = scores((69, 31, 31), (60, 40, 40), (48, 52, 52), (39, 61, 61))


def test_gain_is_paired_by_case_so_that_the_spread_over_cases_drops_out():
    difference = paired_difference(TUNED, UNTUNED)
    # Standard deviation 0.00816, t of three degrees of freedom 3.182: 0.11 +- 3.182 * 0.00816 / 2.
    assert difference["mean"] == pytest.approx(0.11)
    assert difference["ci95"] == pytest.approx([0.097, 0.123], abs=5e-4)
    assert (difference["ci95_method"], difference["n_cases"], difference["verdict"]) == ("t", 4, "better")


def test_swapped_networks_give_the_loss_and_say_worse():
    difference = paired_difference(UNTUNED, TUNED)
    assert difference["mean"] == pytest.approx(-0.11)
    assert difference["verdict"] == "worse"


def test_interval_that_holds_zero_shows_nothing():
    mixed = scores((45, 5, 5), (30, 20, 20), (31, 19, 19), (26, 24, 24))
    difference = paired_difference(mixed, TUNED)
    assert difference["mean"] > 0
    assert difference["verdict"] == "not shown to be better"
    assert paired_difference(TUNED, TUNED)["verdict"] == "not shown to be better"
    assert paired_difference(scores((4, 1, 1)), scores((1, 4, 4)))["verdict"] == "not shown to be better"


def test_cases_without_a_value_in_one_of_them_are_left_out():
    difference = paired_difference(scores((40, 10, 10), (0, 0, 0)), scores((35, 15, 15), (0, 9, 0)))
    assert difference["n_cases"] == 1
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["ci95"] is None


def test_nothing_to_pair_gives_no_verdict():
    difference = paired_difference(scores((0, 0, 0)), scores((0, 0, 0)))
    assert (difference["mean"], difference["verdict"]) == (None, None)


def test_cases_of_one_patient_are_one_unit_of_the_interval():
    difference = paired_difference(TUNED, UNTUNED, ("p", "p", "q", "q"))
    # Gains 0.11, 0.10, 0.12, 0.11: residual sums -0.01 and 0.01, error sqrt(2 * 0.0002) / 4 = 0.005, t of one 12.706.
    assert difference["ci95"] == pytest.approx([0.11 - 12.706 * 0.005, 0.11 + 12.706 * 0.005], abs=5e-4)
    assert (difference["mean"], difference["n_cases"], difference["n_patients"]) == (pytest.approx(0.11), 4, 2)
    assert "(paired over 4 cases of 2 patients, 95 %" in verdict_sentence(difference, "without a prompt")
    one = paired_difference(TUNED, UNTUNED, ("p",) * 4)
    assert one["ci95"] is None
    assert (
        "on the one test patient, which shows nothing: it has no interval; folds=K tests every patient once"
        in verdict_sentence(one, "without a prompt")
    )


def test_sentence_tells_difference_interval_and_cases():
    sentence = verdict_sentence(paired_difference(UNTUNED, TUNED), "under the same prompts")
    assert sentence == (
        "Worse than the untuned network under the same prompts: Dice -0.110 "
        "(paired over 4 cases, 95 % interval -0.123 to -0.097)."
    )
    one = verdict_sentence(paired_difference(scores((4, 1, 1)), scores((1, 4, 4))), "under the same prompts")
    assert one.startswith("Not shown to be better than the untuned")
    assert one.endswith(
        "Dice +0.600 on the one test case, which shows nothing: it has no interval; folds=K tests every case once."
    )


BETTER, WORSE = paired_difference(TUNED, UNTUNED), paired_difference(UNTUNED, TUNED)


def verdict(**differences):
    return verdict_of({name: {"tuned_minus_this": difference} for name, difference in differences.items()})


def test_verdict_is_against_the_network_that_is_asked_alike_however_the_others_do():
    found = verdict(oracle_box=WORSE, whole_image_box=WORSE, same_prompts=BETTER)
    assert (found["against"], found["verdict"]) == ("same_prompts", "better")
    assert "untuned network under the same prompts: " in found["text"]


def test_network_without_prompts_is_held_against_the_better_of_those_that_know_as_little():
    for names in (("no_prompt", "whole_image_box"), ("whole_image_box", "no_prompt")):
        found = verdict(oracle_box=WORSE, **dict(zip(names, (BETTER, WORSE), strict=True)))
        assert (found["against"], found["verdict"]) == (names[1], "worse")
    assert verdict(oracle_box=WORSE, whole_image_box=BETTER)["against"] == "whole_image_box"


def test_verdict_brings_the_difference_that_it_rests_on():
    found = verdict(same_prompts=BETTER)
    assert found["difference"] == {name: BETTER[name] for name in ("mean", "ci95", "ci95_method", "n_cases", "n_patients")}


def test_nothing_to_compare_with_is_a_verdict_too():
    without = (
        verdict(),
        verdict(same_prompts=paired_difference(scores((0, 0, 0)), scores((0, 0, 0)))),
        verdict(oracle_box=BETTER),
    )
    for found in without:
        assert (found["verdict"], found["against"], found["difference"]) == ("not compared", None, None)
        assert found["text"].startswith("Not compared with an untuned network: no test case has a Dice of both")
    assert not_compared("run.baselines is false")["text"] == "Not compared with an untuned network: run.baselines is false."
