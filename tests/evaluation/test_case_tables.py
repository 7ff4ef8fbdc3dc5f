import math

import numpy as np
import pytest
import scipy.stats

from medsam_tune.errors import DataError
from medsam_tune.evaluation.case_tables import CaseTable, compare_in_pairs, holm, read_case_table
from medsam_tune.evaluation.pooled_tables import write_pooled_table
from medsam_tune.metrics.interval import mean_p_value

HEAD = "case,label,n_slices,dice,excluded\n"


def table(**dice):
    return CaseTable(dice, frozenset(), frozenset({"object"}))


def test_a_case_is_the_mean_over_its_scored_labels(tmp_path):
    path = tmp_path / "test_cases.csv"
    path.write_text(HEAD + "a,left,3,0.4,false\na,right,3,0.8,false\nb,left,3,,true\nb,right,3,0.5,false\nc,left,1,,true\n")
    read = read_case_table(path)
    assert read.dice == {"a": pytest.approx(0.6), "b": 0.5}
    assert (read.excluded, read.labels) == ({"c"}, {"left", "right"})
    assert read.mean == pytest.approx(0.55)


@pytest.mark.parametrize("text", ["no,such,columns\n1,2,3\n", HEAD + "a,x,1,high,false\n"])
def test_what_is_no_table_is_named(tmp_path, text):
    (tmp_path / "test_cases.csv").write_text(text)
    with pytest.raises(DataError, match=r"test_cases\.csv: is no table of test cases"):
        read_case_table(tmp_path / "test_cases.csv")


FULL = "case,label,dice,hd95,hd95_unit,excluded,patient\n"


def pooled(tmp_path, *texts):
    paths = [tmp_path / f"{number}.csv" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(FULL + text)
    return read_case_table(write_pooled_table(paths, tmp_path / "pooled.csv"))


def test_seeds_are_pooled_by_case_and_folds_side_by_side(tmp_path):
    seeds = pooled(tmp_path, "a,o,0.4,2,mm,false,p\nb,o,0.6,3,mm,false,p\n", "a,o,0.6,4,mm,false,p\nb,o,0.8,inf,mm,false,p\n")
    assert seeds.dice == {"a": 0.5, "b": pytest.approx(0.7)}
    assert seeds.figures["hd95"] == {"a": 3.0, "b": math.inf}
    assert set(seeds.patients.values()) == {"p"}
    assert pooled(tmp_path, "a,o,0.4,2,mm,false,p\n", "b,o,0.6,3,mm,false,q\n").dice == {"a": 0.4, "b": 0.6}


def test_a_pair_is_excluded_where_it_is_in_every_table(tmp_path):
    both = pooled(tmp_path, "a,o,,,mm,true,a\nb,o,,,mm,true,b\n", "a,o,0.0,inf,px,false,a\nb,o,,,mm,true,b\n")
    assert (both.dice, both.excluded) == ({"a": 0.0}, {"b"})
    assert (tmp_path / "pooled.csv").read_text().splitlines()[1] == "a,o,0.000000,false,a,2,inf,"


def test_patients_are_the_unit_of_intervals_and_p():
    cases = {"a": 0.9, "b": 0.8, "c": 0.6, "d": 0.7}
    patients = dict(zip("abcd", "ppqq", strict=True))
    first = CaseTable(cases, frozenset(), frozenset({"object"}), patients)
    second = CaseTable({case: 0.5 for case in cases}, frozenset(), frozenset({"object"}), patients)
    (pair,) = compare_in_pairs({"x": first, "y": second})
    # Patients' mean gains 0.35 and 0.15 of two cases each: t of one degree of freedom.
    assert pair.p == pytest.approx(scipy.stats.ttest_1samp([0.35, 0.15], 0).pvalue)


def test_difference_interval_and_p_are_those_of_the_pairs():
    first, second = table(a=0.9, b=0.8, c=0.6, d=0.7), table(a=0.8, b=0.6, c=0.6, d=0.65)
    (pair,) = compare_in_pairs({"x": first, "y": second})
    reference = scipy.stats.ttest_rel([0.9, 0.8, 0.6, 0.7], [0.8, 0.6, 0.6, 0.65])
    ends = reference.confidence_interval(0.95)
    assert (pair.first, pair.second, pair.n_cases) == ("x", "y", 4)
    assert pair.mean == pytest.approx(0.0875)
    assert (pair.interval.low, pair.interval.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert pair.p == pair.p_holm == pytest.approx(reference.pvalue)


def test_one_shared_case_has_a_difference_and_neither_interval_nor_p():
    (pair,) = compare_in_pairs({"x": table(a=0.9, b=0.5), "y": table(a=0.8, c=0.1)})
    assert (pair.mean, pair.interval, pair.n_cases) == (pytest.approx(0.1), None, 1)
    assert math.isnan(pair.p)
    assert math.isnan(pair.p_holm)


def test_holm_is_worked_out_by_hand():
    # Sorted 0.01, 0.02, 0.04: times 3, 2 and 1, never below the one before.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.4, 0.5, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([math.nan, 0.03, 0.02])[1:] == pytest.approx([0.04, 0.04])


def test_p_of_samples_agrees_with_scipy_and_is_defined_without_spread():
    for size in (2, 5, 40):
        gains = np.random.default_rng(size).normal(0.02, 0.05, size)
        assert mean_p_value(gains) == pytest.approx(scipy.stats.ttest_1samp(gains, 0.0).pvalue)
    assert [mean_p_value([0.0, 0.0]), mean_p_value([0.1, 0.1])] == [1.0, 0.0]


def test_three_tables_are_three_pairs_in_order():
    pairs = compare_in_pairs({"x": table(a=0.9, b=0.8), "y": table(a=0.8, b=0.6), "z": table(a=0.1, b=0.2)})
    assert [(pair.first, pair.second) for pair in pairs] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert all(pair.p_holm >= pair.p for pair in pairs)
