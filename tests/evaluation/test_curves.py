import pytest

from medsam_tune.errors import DataError
from medsam_tune.evaluation.curves import draw_curves, read_metrics

SPARSE = """epoch,step,train/loss,train/loss_step,val/dice,train/dice
0,0,,1.5,,
0,1,,1.25,,
0,1,1.375,,,0.7
0,1,,,0.25,
1,3,nan,,0.5,
"""


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(SPARSE)
    return path


def test_sparse_columns_become_series_without_gaps(metrics):
    assert read_metrics(metrics) == {
        "train/loss": [(1, 1.375)],
        "train/loss_step": [(0, 1.5), (1, 1.25)],
        "val/dice": [(1, 0.25), (3, 0.5)],
        "train/dice": [(1, 0.7)],
    }


def drawn_lines(path, monkeypatch, epochs=None):
    from matplotlib.axes import Axes

    lines = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: lines.append((k.get("label"), list(a[1]))) or plot(self, *a, **k))
    png = draw_curves(path, epochs)
    return png, dict(lines)


def test_loss_by_step_and_validation_scores_are_drawn_but_no_loss_term_named_dice(metrics, monkeypatch):
    png, lines = drawn_lines(metrics, monkeypatch)
    assert png.startswith(b"\x89PNG")
    assert lines == {"train/loss": [1.5, 1.25], "val/dice": [0.25, 0.5]}


def test_long_curve_is_smoothed_from_its_first_value(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n" + "".join(f"{step},{1 if step == 0 else 0}\n" for step in range(80)))
    _, lines = drawn_lines(path, monkeypatch)
    assert lines["train/loss, smoothed"][:3] == pytest.approx([1, 0.9, 0.81])


def test_learning_rate_and_seconds_are_drawn_as_they_are(tmp_path, monkeypatch):
    path, epochs = tmp_path / "metrics.csv", tmp_path / "epochs.csv"
    path.write_text("step,train/loss_step,lr\n" + "".join(f"{step},1,{step / 100}\n" for step in range(80)))
    epochs.write_text("epoch,step,seconds\n0,39,12.5\n1,79,2.5\n")
    _, lines = drawn_lines(path, monkeypatch, epochs)
    assert lines["Learning rate"] == [step / 100 for step in range(80)]
    assert lines["Seconds an epoch"] == [12.5, 2.5]


def test_one_epoch_has_no_curve(metrics, tmp_path, monkeypatch):
    (tmp_path / "epochs.csv").write_text("epoch,step,seconds\n0,39,12.5\n")
    assert "Seconds an epoch" not in drawn_lines(metrics, monkeypatch, tmp_path / "epochs.csv")[1]


def test_file_without_anything_to_draw_gives_no_picture(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/bce\n0,1,0.1\n")
    assert draw_curves(path, tmp_path / "absent.csv") is None


def test_missing_or_foreign_file_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match="Train with a CSV logger"):
        read_metrics(tmp_path / "metrics.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has no column step, only a, b"):
        read_metrics(tmp_path / "other.csv")
