import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

import medsam_tune
from medsam_tune.cli import doctor, main
from medsam_tune.errors import RecipeError


@pytest.fixture
def installed(monkeypatch):
    """Pretend that medsam-tune asks for two packages with the given versions here."""

    def pretend(**versions):
        def version(name):
            if versions.get(name) is None:
                raise PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(
            doctor, "requires", lambda _name: ["lightning<3,>=2.6.6", "nibabel>=5.2", 'pytest>=8; extra == "test"']
        )
        monkeypatch.setattr(doctor, "version", version)

    return pretend


def test_report_covers_everything_and_ends_well(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"medsam-tune {medsam_tune.__version__}, Python {sys.version.split()[0]}")
    titles = [line for line in shown.splitlines() if line and not line.startswith(" ")][1:]
    assert titles == ["packages", "devices", "memory", "weights", "recipes", "cache", "the `lightning` command"]
    assert f"  {tmp_path}: 0 embeddings, 0 priors, 0 B" in shown


def test_packages_are_listed_with_what_is_asked_for(installed):
    installed(lightning="2.6.6", nibabel="5.4.2")
    assert [line.split() for line in doctor.package_lines()] == [
        ["lightning", "2.6.6", "<3,>=2.6.6"],
        ["nibabel", "5.4.2", ">=5.2"],
    ]


def test_missing_package_is_said_to_be_missing(installed):
    installed(lightning="2.6.6")
    assert list(doctor.package_lines())[-1].split() == ["nibabel", "MISSING", ">=5.2"]


def test_malicious_lightning_is_named_with_the_remedy(installed):
    installed(lightning="2.6.3", nibabel="5.4.2")
    assert "malicious upload" in list(doctor.package_lines())[1]


def test_broken_torch_does_not_end_the_report(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch cannot be imported" in list(doctor.device_lines())[-1]


@pytest.mark.parametrize(("major", "precision"), [(8, "bf16-mixed"), (7, "16-mixed")])
def test_precision_follows_the_generation_of_the_gpu(monkeypatch, major, precision):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(name="A GPU", major=major, total_memory=8_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    assert f"cuda:0: A GPU, 8.0 GB; --trainer.precision={precision} suits it" in list(doctor.device_lines())


def test_memory_limit_of_a_container_is_reported(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("4000000000\n")
    monkeypatch.setattr(doctor, "CGROUP_LIMIT", limit)
    assert list(doctor.memory_lines())[-1] == "this container may use 4.0 GB"


def test_missing_recipes_do_not_end_the_report(monkeypatch):
    def missing():
        raise RecipeError("recipes: the bundled recipes are missing. Reinstall medsam-tune.")

    monkeypatch.setattr(doctor, "recipes_folder", missing)
    assert list(doctor.recipe_lines()) == ["recipes: the bundled recipes are missing. Reinstall medsam-tune."]


def test_fix_mends_the_cache_and_says_so(capsys, tmp_path, monkeypatch):
    store = tmp_path / "embeddings" / "aaaaaaaaaaaa-0123456789abcdef"
    store.mkdir(parents=True)
    (store / "shard-0000000000000000.safetensors").write_bytes(b"cut off")
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "take_back", lambda: [])
    assert main(["doctor", "--fix"]) == 0
    assert f"\nfixed\n  {store}: 0 damaged entries and 1 unreadable shards removed" in capsys.readouterr().out
    assert main(["doctor", "--fix"]) == 0
    assert capsys.readouterr().out.endswith("\nfixed\n  nothing needed it\n")
