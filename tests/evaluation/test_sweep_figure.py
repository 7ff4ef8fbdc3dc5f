import pytest

from medsam_tune.evaluation.sweep_figure import SweepPoint, draw_sweep


def test_signs_of_a_formula_in_a_value_or_a_title_are_drawn_as_they_are():
    points = [SweepPoint(r"$\frac{1}$", 10, 1000, 0.5, None), SweepPoint("a_b^c", 20, 2000, 0.6, (0.5, 0.7))]
    assert draw_sweep(points, title=r"$\sqrt$_rank").startswith(b"\x89PNG")


def test_no_finished_run_is_refused():
    with pytest.raises(ValueError, match="at least one finished run"):
        draw_sweep([], title="empty")
