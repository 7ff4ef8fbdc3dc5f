import math

import numpy as np
import pytest
import scipy.stats

from medsam_tune.errors import DataError
from medsam_tune.evaluation.case_tables import CaseTable, compare_in_pairs, holm, paired_t_test, pool, read_case_table

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


def test_seeds_are_pooled_by_case_and_folds_side_by_side():
    assert pool([table(a=0.4, b=0.6), table(a=0.6, b=0.8)]).dice == {"a": 0.5, "b": pytest.approx(0.7)}
    assert pool([table(a=0.4), table(b=0.6)]).dice == {"a": 0.4, "b": 0.6}


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
        assert paired_t_test(gains) == pytest.approx(scipy.stats.ttest_1samp(gains, 0.0).pvalue)
    assert [paired_t_test([0.0, 0.0]), paired_t_test([0.1, 0.1])] == [1.0, 0.0]


def test_three_tables_are_three_pairs_in_order():
    pairs = compare_in_pairs({"x": table(a=0.9, b=0.8), "y": table(a=0.8, b=0.6), "z": table(a=0.1, b=0.2)})
    assert [(pair.first, pair.second) for pair in pairs] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert all(pair.p_holm >= pair.p for pair in pairs)
