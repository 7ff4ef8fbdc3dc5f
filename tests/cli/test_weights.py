from pathlib import Path

import pytest

from medsam_tune.backbone import weights
from medsam_tune.cli import main


@pytest.fixture
def one_found(monkeypatch):
    monkeypatch.setattr(weights, "find_weights", lambda name: Path("/models/sam_vit_b.pth") if name == "sam_vit_b" else None)


@pytest.mark.parametrize("words", [["weights"], ["weights", "list"]], ids=" ".join)
def test_list_shows_the_file_or_the_way_to_it(words, one_found, capsys):
    assert main(words) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows.keys() == {"name", *weights.WEIGHTS}
    assert rows["sam_vit_b"].endswith("  /models/sam_vit_b.pth")
    assert rows["sam_vit_h"].endswith("  not here: medsam-tune weights get sam_vit_h")


def test_get_prints_the_path_of_what_it_fetched(monkeypatch, capsys):
    monkeypatch.setattr(weights, "fetch_weights", lambda name: Path("/models") / f"{name}.pth")
    assert main(["weights", "get", "sam_vit_b"]) == 0
    assert capsys.readouterr().out == "/models/sam_vit_b.pth\n"


def test_get_of_unknown_weights_is_one_line(capsys):
    assert main(["weights", "get", "sam_vit_x"]) == 2
    assert capsys.readouterr().err.startswith("error: sam_vit_x: no such weights. Did you mean sam_vit_")
