import pytest

from medsam_tune.cli import main
from medsam_tune.cli.cache import format_bytes


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def stores():
    """Fill one store of embeddings and one of priors, and return their folders."""
    import torch

    from medsam_tune.geometry import InputRule
    from medsam_tune.precompute import EmbeddingPrecompute, PriorOrigin, PriorPrecompute, PriorSettings, open_store

    rule = InputRule(side=64)
    embeddings = EmbeddingPrecompute(weights_name="lite", weights_sha256="l" * 64, rule=rule, load=None, encode=None)
    priors = PriorPrecompute(PriorOrigin(PriorSettings("vit_b"), "v" * 64, rule), None, None)
    made = [open_store(embeddings), open_store(priors)]
    made[0].write({f"{made[0].identity}-{name}": torch.zeros(4, 2, 2) for name in "ab"})
    return [store.folder for store in made]


def test_empty_cache_is_listed_as_empty(root, capsys):
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{root}: nothing is cached\n"


def test_list_shows_images_and_weights_of_every_store(stores, capsys):
    assert main(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in lines[:-1]}
    assert shown.keys() == {folder.name for folder in stores}
    assert " embeddings        2 images " in shown[stores[0].name]
    assert " lite " in shown[stores[0].name]
    assert " priors            0 images " in shown[stores[1].name]
    assert " vit_b " in shown[stores[1].name]


def test_clear_removes_the_named_store_only(stores, capsys):
    assert main(["cache", "clear", stores[0].name]) == 0
    assert [folder.exists() for folder in stores] == [False, True]
    assert capsys.readouterr().out.startswith("freed ")


def test_clear_of_a_kind_removes_its_stores(stores):
    assert main(["cache", "clear", "priors"]) == 0
    assert [folder.exists() for folder in stores] == [True, False]


def test_clear_all_removes_every_store(stores):
    assert main(["cache", "clear", "--all"]) == 0
    assert not any(folder.exists() for folder in stores)


@pytest.mark.parametrize("words", [[], ["--all", "somename"]], ids=["nothing", "both"])
def test_clear_wants_one_name_or_all(words, stores, capsys):
    assert main(["cache", "clear", *words]) == 2
    assert f"give one NAME or --all. There are: {stores[0].name}, {stores[1].name}." in capsys.readouterr().err
    assert all(folder.exists() for folder in stores)


def test_clear_of_an_unknown_store_names_those_there_are(stores, capsys):
    assert main(["cache", "clear", "mine"]) == 2
    assert f"mine: no such cached store. There are: {stores[0].name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (3_200_000_000_000_000, "3200.0 TB"),
    ],
)
def test_bytes_are_written_for_people(size, text):
    assert format_bytes(size) == text
