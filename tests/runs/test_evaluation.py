"""``medsam-tune evaluate`` on a folder and on a run: its files, what it goes on with, and what it refuses."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.backbone import SamBackbone
from medsam_tune.cli import main
from medsam_tune.protocols.base import Protocol
from medsam_tune.runs.asked_model import open_model
from medsam_tune.runs.evaluation.data import EvaluationData, plan_data
from medsam_tune.runs.evaluation.job import case_file
from medsam_tune.runs.run import Run
from tests.processes import warm
from tests.training.tiny_runs import forget_run

QUICK = ("--protocol=prompts", "--jitter=0,0.1", "--depths=1", "--draws=1", "--clicks=2")


def write_folder(folder):
    """Three images that are not square: two classes, an object at the border, several pieces, and one without any object."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        mask = np.zeros((24, 40), np.uint8)
        if number < 2:
            mask[4 : 12 + number, 3:14] = 1
            mask[16:24, 28:40] = mask[1:4, 30:33] = 2
        Image.fromarray(rng.integers(0, 255, (24, 40), dtype=np.uint8)).save(folder / "images" / f"p{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"p{number}.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*words):
    return main(["evaluate", *words])


def table(out):
    with (out / "objects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def summary(out):
    return json.loads((out / "summary.json").read_text())


def test_a_folder_is_asked_and_everything_is_written(place, capsys):
    assert evaluate("random_tiny", "data", *QUICK) == 0
    out = place / "evaluations" / "prompts-data"
    assert {path.name for path in out.iterdir()} >= {"objects.csv", "summary.json", "figure.png", "report.html", "cases"}
    told = capsys.readouterr().out
    assert "3 cases, 3 images, 4 objects; 1 images show none" in told
    assert "The oracle chooses by the truth" in told
    found = summary(out)
    assert (found["objects"], found["images_without_object"], found["target"]) == (4, 1, "per_label")
    page = (out / "report.html").read_text()
    assert "an upper limit, not a result" in page
    assert "data:image/png;base64" in page


def test_the_same_command_goes_on_where_it_was_cut_off(place, monkeypatch, capsys):
    """Ctrl-C after the first case: its file stays, and the second call asks about the others alone."""
    asked = []
    protocol = type(_protocol())
    rows = protocol.rows

    def interrupted(self, images, model, *, seed):
        asked.append(images[0].case)
        if asked == ["p0", "p1"]:
            raise KeyboardInterrupt
        return rows(self, images, model, seed=seed)

    monkeypatch.setattr(protocol, "rows", interrupted)
    assert evaluate("random_tiny", "data", *QUICK, "-o", "out") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [path.name for path in (place / "out" / "cases").iterdir()] == ["p0.json"]
    assert evaluate("random_tiny", "data", *QUICK, "-o", "out") == 0
    assert asked == ["p0", "p1", "p1", "p2"]
    assert "3 cases, 1 of them from before" in capsys.readouterr().out
    cut_off = table(place / "out")
    assert evaluate("random_tiny", "data", *QUICK, "-o", "whole") == 0
    assert cut_off == table(place / "whole")


def test_a_case_that_does_not_fit_into_memory_names_the_option_of_this_command(place, monkeypatch, capsys):
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(type(_protocol()), "rows", lambda *_, **__: (_ for _ in ()).throw(full))
    assert evaluate("random_tiny", "data", *QUICK) == 1
    said = capsys.readouterr().err
    assert "out of memory (DefaultCPUAllocator: can't allocate memory). p0: set --batch-size=1" in said
    assert "data.batch_size" not in said


def test_a_mask_that_does_not_fit_into_memory_is_named(place, monkeypatch, capsys):
    def read(pair, *_):
        raise MemoryError("Unable to allocate 61.0 MiB")

    monkeypatch.setattr("medsam_tune.data.fingerprint.read_pair", read)
    assert evaluate("random_tiny", "data", *QUICK) == 2
    assert "p0.png: out of memory (Unable to allocate 61.0 MiB). Cut it into tiles" in capsys.readouterr().err


def test_other_settings_models_or_files_are_asked_anew(place, capsys):
    words = ("random_tiny", "data", "--protocol=segment", "-o", "out")
    evaluate(*words)
    evaluate(*words, "--seed=1")
    assert "from before" not in capsys.readouterr().out
    mask = np.array(Image.open(place / "data" / "masks" / "p0.png"))
    mask[0, 0] = 1
    Image.fromarray(mask).save(place / "data" / "masks" / "p0.png")
    evaluate(*words, "--seed=1")
    assert "2 of them from before" in capsys.readouterr().out
    evaluate(*words, "--seed=1", "--overwrite")
    assert "from before" not in capsys.readouterr().out


def test_several_models_get_the_same_prompts(place):
    """The same weights twice, by name and as a plain checkpoint file, give the same figures."""
    torch.save(SamBackbone("random_tiny").state_dict(), place / "mine.pth")
    assert evaluate("random_tiny", "random_tiny=mine.pth", "data", *QUICK, "-o", "out") == 0
    rows = {}
    for row in table(place / "out"):
        rows.setdefault(row.pop("model"), []).append(row)
    assert list(rows) == ["random_tiny", "random_tiny=mine.pth"]
    first, second = rows.values()
    assert first == second


def test_two_processes_find_what_one_finds(place, monkeypatch):
    # The command starts them anew, which imports everything once more in each.
    monkeypatch.setattr("medsam_tune.runs.evaluation.job.get_context", lambda method: warm())
    words = ("random_tiny", "data", "--protocol=mazurowski", "--clicks=2")
    assert evaluate(*words, "-o", "one", "--workers=1") == 0
    assert evaluate(*words, "-o", "two", "--workers=2", "--batch-size=1") == 0
    one, two = table(place / "one"), table(place / "two")
    for row in one + two:
        # The last bit of a predicted IoU may follow the size of the batch; no mask and no score does.
        row["predicted_iou"] = f"{float(row['predicted_iou']):.4f}"
    assert one == two
    assert summary(place / "one")["entries"] == summary(place / "two")["entries"]


def test_parquet_holds_the_rows_of_the_csv(place):
    parquet = pytest.importorskip("pyarrow.parquet")
    evaluate("random_tiny", "data", "--protocol=segment", "--parquet", "-o", "out")
    stored = parquet.read_table(place / "out" / "objects.parquet").to_pylist()
    assert [row["case"] for row in stored] == [row["case"] for row in table(place / "out")]
    assert [f"{row['dice']:.6f}" for row in stored] == [row["dice"] for row in table(place / "out")]


def test_parquet_without_its_library_is_refused_before_any_work(place, monkeypatch, capsys):
    monkeypatch.setattr("medsam_tune.runs.evaluation.outputs.find_spec", lambda name: None)
    assert evaluate("random_tiny", "data", "--protocol=segment", "--parquet") == 2
    assert "pip install medsam-tune[parquet]" in capsys.readouterr().err
    assert not (place / "evaluations").exists()


def test_a_run_as_data_means_its_test_cases_alone(finished, tmp_path, monkeypatch, capsys):
    workplace, run = finished
    folder = run.path
    monkeypatch.chdir(workplace)
    out = tmp_path / "out"
    assert evaluate("random_tiny", str(folder), str(folder), "--protocol=segment", "-o", str(out)) == 0
    found = summary(out)
    test = Run.open(folder).splits.test
    assert {row["case"] for row in table(out)} == set(test)
    assert found["only_test_cases"] is True
    # The plain test is the test of the run: same prompts, same cases, same Dice.
    tuned = next(entry for entry in found["entries"] if entry["model"] != "random_tiny")
    assert tuned["dice"]["mean"] == pytest.approx(Run.open(folder).summary["test"]["dice"]["mean"], abs=1e-6)
    forget_run()
    assert evaluate(str(folder), "images", "--protocol=segment", "-o", str(tmp_path / "other")) == 2
    assert "was trained on cases of images" in capsys.readouterr().err
    assert evaluate(str(folder / "export"), "images", "--protocol=segment", "-o", str(tmp_path / "other")) == 2
    assert f"Give {folder} as DATA too" in capsys.readouterr().err
    assert evaluate(str(folder), "images", "--protocol=segment", "-o", str(tmp_path / "other"), "--training-too") == 0


def test_instances_are_one_object_where_classes_are_asked_for(tmp_path):
    folder = tmp_path / "data"
    write_folder(folder)
    for path in (folder / "masks").iterdir():
        mask = np.zeros((24, 40), np.uint8)
        for number in range(8):
            mask[3 * (number // 4) + 1, 9 * (number % 4) + 2] = number + 1
        Image.fromarray(mask).save(path)
    assert plan_data(str(folder), tmp_path).target == "per_instance"
    together = EvaluationData(plan_data(str(folder), tmp_path, together=True))
    assert [len(image.sample.masks) for image in together.images("p0")] == [1]


def test_a_volume_is_scored_whole_in_its_own_millimetres(tmp_path, monkeypatch):
    """Four slices of 6 x 8 pixels of 2 x 2 x 3 mm: 192 voxels are 2.304 ml, whatever slice they lie on."""
    rng, affine = np.random.default_rng(0), np.diag([2.0, 2.0, 3.0, 1.0])
    for number in range(2):
        label = np.zeros((20, 24, 7), np.uint8)
        label[4:10, 6:14, 2:6] = 1
        volume = rng.random((20, 24, 7)).astype(np.float32)
        for part, values in (("images", volume), ("labels", label)):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "data" / part / f"v{number}.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert evaluate("random_tiny", "data", "--protocol=segment", "-o", "out") == 0
    rows = table(tmp_path / "out")
    assert [(row["case"], row["n_slices"], row["size_unit"], row["distance_unit"]) for row in rows] == [
        ("v0", "4", "ml", "mm"),
        ("v1", "4", "ml", "mm"),
    ]
    assert float(rows[0]["true_size"]) == pytest.approx(192 * 12 / 1000)
    pixels = {name: int(rows[0][name]) for name in ("tp", "fp", "fn")}
    assert float(rows[0]["dice"]) == pytest.approx(
        2 * pixels["tp"] / (2 * pixels["tp"] + pixels["fp"] + pixels["fn"]), abs=1e-6
    )
    assert pixels["tp"] + pixels["fn"] == 192
    (entry,) = summary(tmp_path / "out")["entries"]
    more = [int(row["fp"]) - int(row["fn"]) for row in rows]
    assert entry["size_difference"]["mean"] == pytest.approx(sum(more) * 12 / 1000 / 2)
    assert entry["size_difference"]["unit"] == "ml"
    assert entry["per_label"]["label 1"]["hd95"] == entry["hd95"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{entry['hd95']['mean']:.3g} mm" in page
    assert "NSD within 2 mm" in page
    # Nothing was selected by the truth here.
    assert "oracle" not in page


def test_data_sets_of_one_folder_have_figures_of_their_own(tmp_path, monkeypatch):
    for name in ("ct", "mr"):
        write_folder(tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path)
    assert evaluate("random_tiny", "data", "--protocol=segment", "-o", "out") == 0
    (entry,) = summary(tmp_path / "out")["entries"]
    assert {name: found["n_cases"] for name, found in entry["per_data_set"].items()} == {"ct": 2, "mr": 2}
    assert "By data set" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("random_tiny", "--protocol=segment"), "expected MODEL and DATA"),
        (("random_tiny", "random_tiny", "data", "--protocol=segment"), "expected each model once"),
        (("random_tiny", "nowhere", "--protocol=segment"), "nowhere"),
        (("nobody", "data", "--protocol=segment"), "no such run or export folder, and no weights of that name"),
        (("random_tiny", "data", "--protocol=huang", "--strategies=S9"), "--strategies: expected some of S1"),
        (("random_tiny", "data", "--protocol=huang", "--displacements=far"), "--displacements: expected a range"),
        (("random_tiny", "data", "--protocol=mazurowski", "--modes=7"), "--modes: expected numbers"),
        (("random_tiny", "data", "--protocol=prompts", "--jitter=x"), "--jitter: expected numbers with commas"),
        (("random_tiny", "data", "--protocol=prompts", "--jitter=2"), "expected shares from 0 to 1"),
        (("random_tiny", "data", "--protocol=segment", "--devices=cuda:77"), "--devices: cuda:77 cannot be used"),
        (("random_tiny", "data", "--protocol=segment", "--workers=-1"), "--workers: expected 1 or more"),
        (("random_tiny", "data", "--protocol=segment", "-o", "data"), "holds something else than an evaluation"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(place, capsys, words, said):
    assert evaluate(*words) == 2
    assert said in capsys.readouterr().err


def test_a_plain_checkpoint_is_known_by_its_shapes(place, monkeypatch, capsys):
    name = str(place / "sam.pth")
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 768)}, name)
    assert evaluate(name, "data", "--protocol=segment") == 2
    assert f"holds vit_b. Say whose input rule it follows: medsam_vit_b={name} or sam_vit_b={name}" in capsys.readouterr().err
    torch.save({"weight": torch.zeros(2)}, name)
    assert evaluate(name, "data", "--protocol=segment") == 2
    assert "holds no architecture that is known here" in capsys.readouterr().err
    lite = str(place / "lite.pth")
    torch.save(SamBackbone("lite_medsam").state_dict(), lite)
    model = open_model(lite)
    assert (model.is_untuned, model.predictor.segmenter.input_rule.side) == (True, 256)


def test_a_case_file_that_is_damaged_is_asked_anew(place, capsys):
    words = ("random_tiny", "data", "--protocol=segment", "-o", "out")
    evaluate(*words)
    case_file(place / "out", "p1").write_text("{")
    assert evaluate(*words) == 0
    assert "2 of them from before" in capsys.readouterr().out


def _protocol() -> Protocol:
    from medsam_tune.protocols.sweep import PromptsProtocol

    return PromptsProtocol()
