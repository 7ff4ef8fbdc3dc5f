import yaml

from medsam_tune.training.places import read_recipe, split_places, with_local, write_recipe
from medsam_tune.training.run_folder import RunFolder

RECIPE = {
    "model": {
        "backbone": {"class_path": "SamBackbone", "init_args": {"checkpoint": "/me/sam.pth", "side": None}},
        "optimizer": "torch.optim.Adam",
    },
    "data": {
        "root": "/scans/DOE/images",
        "source": {"class_path": "ImageFolder", "init_args": {"images": "images", "case_pattern": "/(p[0-9]+)/"}},
        "patient": "DOE.csv",
        "split": {"file": None},
    },
    "trainer": {"callbacks": [{"class_path": "Timer"}, {"class_path": "Log", "init_args": {"dirpath": "../DOE/logs"}}]},
    "run": {"folder": "runs"},
}


def test_only_paths_are_local_and_a_class_stands_with_its_own(tmp_path):
    shared, local = split_places(RECIPE)
    assert local == {
        "model": {"backbone": {"class_path": "SamBackbone", "init_args": {"checkpoint": "/me/sam.pth"}}},
        "data": {"root": "/scans/DOE/images", "patient": "DOE.csv"},
        "trainer": {"callbacks": RECIPE["trainer"]["callbacks"]},
    }
    assert shared["model"]["backbone"]["init_args"] == {"checkpoint": "sam.pth", "side": None}
    assert shared["data"] == RECIPE["data"] | {"root": "DIR", "patient": "FILE"}
    assert shared["trainer"]["callbacks"][1]["init_args"] == {"dirpath": "logs"}
    assert "DOE" not in str(shared)


def test_a_file_of_the_data_that_is_there_has_no_name_in_what_is_shared(tmp_path):
    (tmp_path / "DOE.json").write_text("{}")
    file = str(tmp_path / "DOE.json")
    shared, local = split_places({"data": {"root": "sample:carotid", "split": {"file": file}}})
    assert shared["data"] == {"root": "sample:carotid", "split": {"file": "FILE"}}
    assert local == {"data": {"split": {"file": file}}}


def test_both_files_together_are_the_recipe_again(tmp_path):
    folder = RunFolder(tmp_path)
    assert write_recipe(folder, yaml.safe_dump(RECIPE)) == folder.config.read_text()
    assert read_recipe(folder) == RECIPE
    assert folder.local.stat().st_mode & 0o777 == 0o600
    plain = RECIPE | {"model": {}, "trainer": {}, "data": {"root": "sample:carotid"}}
    write_recipe(folder, yaml.safe_dump(plain))
    assert (read_recipe(folder), folder.local.exists()) == (plain, False)


def test_local_file_follows_the_recipe_of_its_run_in_both_spellings(tmp_path):
    folder = RunFolder(tmp_path)
    folder.local.write_text("{}")
    config, local = str(folder.config), f"--config={folder.local}"
    assert with_local(["test", "--config", config, "--a=1"]) == ["test", "--config", config, local, "--a=1"]
    assert with_local([f"--config={config}", "--b"]) == [f"--config={config}", local, "--b"]
    assert with_local([f"--run.folder={config}", "--config=other.yaml"]) == [f"--run.folder={config}", "--config=other.yaml"]
