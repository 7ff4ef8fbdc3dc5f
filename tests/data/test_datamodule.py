import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsam_tune.data import Augmentation, ImageFolder, NiftiVolumes, SliceRule, SplitSettings
from medsam_tune.data.datamodule import SegmentationDataModule
from medsam_tune.errors import DataError, DataWarning, RecipeError
from medsam_tune.geometry import InputRule
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.prompts import BoxJitter, BoxPrompt
from medsam_tune.types import AutomaticMasks

RULE = InputRule(side=32)
FLIP = Augmentation(horizontal_flip=0.5)


def opened(source, **settings):
    data = SegmentationDataModule(source, "somewhere", **settings)
    data.open(RULE)
    return data


def indices(loader):
    return [int(index) for batch in loader for index in batch.sample_index]


def test_loaders_serve_whole_cases_and_every_item_once(array_source):
    data = opened(array_source(20))
    served = {part: indices(getattr(data, f"{part}_dataloader")()) for part in ("train", "val", "test")}
    assert sorted(served["train"] + served["val"] + served["test"]) == list(range(20))
    for part, cases in (("train", data.splits.train), ("val", data.splits.val), ("test", data.splits.test)):
        assert {f"case_{index // 2}" for index in served[part]} == set(cases)
    assert sorted(indices(data.predict_dataloader())) == list(range(20))


def test_runs_seed_reaches_what_is_drawn_for_a_batch(array_source):
    drawn = []
    for seed in (0, 0, 1):
        data = opened(array_source(8), seed=seed)
        batch = next(iter(data.val_dataloader()))
        queries = BoxPrompt(eval_jitter=BoxJitter(9)).draw(batch, mask_side=16)
        drawn.append((batch.seed, queries.boxes.tolist()))
    assert drawn[0] == drawn[1]
    assert [seed for seed, _ in drawn] == [0, 0, 1]
    assert drawn[0][1] != drawn[2][1]


def test_case_index_points_into_the_sorted_case_names(array_source):
    data = opened(array_source(24))
    for batch in data.train_dataloader():
        assert tuple(data.case_names[i] for i in batch.case_index) == batch.case_ids


def test_opening_again_for_the_same_rule_does_nothing_and_for_another_rebuilds(array_source):
    source = array_source()
    data = opened(source)
    data.open(RULE)
    assert source.opened == 1
    data.open(InputRule(side=16))
    assert next(iter(data.val_dataloader())).images.shape[-1] == 16


def test_splits_are_stored_in_the_run_folder_and_read_from_there(array_source, tmp_path):
    data = SegmentationDataModule(array_source(12), "somewhere")
    data.open(RULE, run_folder=tmp_path)
    path = tmp_path / "splits.json"
    stored = json.loads(path.read_text())
    stored["train"], stored["test"] = stored["test"], stored["train"]
    path.write_text(json.dumps(stored))
    resumed = SegmentationDataModule(array_source(12), "somewhere")
    resumed.open(RULE, run_folder=tmp_path)
    assert (resumed.splits.train, resumed.splits.test) == (data.splits.test, data.splits.train)


def test_split_file_wins_and_is_copied_to_the_run_folder(array_source, tmp_path):
    parts = {"train": ["case_3"], "val": ["case_0", "case_1"], "test": ["case_2"]}
    (tmp_path / "mine.json").write_text(json.dumps(parts))
    data = SegmentationDataModule(array_source(8), "somewhere", split=SplitSettings(file=str(tmp_path / "mine.json")))
    data.open(RULE, run_folder=tmp_path / "run")
    assert sorted(indices(data.train_dataloader())) == [6, 7]
    assert json.loads((tmp_path / "run" / "splits.json").read_text())["val"] == ["case_0", "case_1"]


@pytest.mark.parametrize("target", ["binary", "per_label"])
def test_training_part_without_any_object_is_refused(array_source, target):
    with pytest.raises(DataError, match=r"somewhere: no object in any training image \(\d+ looked at\)"):
        opened(array_source(8, empty=tuple(range(8))), target=target)


def test_images_without_an_object_are_negatives_in_binary_and_left_out_of_training_else(array_source):
    source = array_source(20, empty=tuple(range(0, 20, 2)))
    assert {index % 2 for index in opened(source).dataset("train").indices} == {0, 1}
    per_label = opened(source, target="per_label")
    assert {index % 2 for index in per_label.dataset("train").indices} == {1}
    assert {index % 2 for index in per_label.dataset("test").indices} == {0, 1}


def test_cache_items_hold_every_view_of_training_images_and_view_0_of_the_rest(array_source):
    data = opened(array_source(8), augmentation=FLIP, views=3)
    train, rest = data.dataset("train").indices, data.dataset("val").indices + data.dataset("test").indices
    expected = {(index, view) for index in train for view in range(3)} | {(index, 0) for index in rest}
    assert set(data.cache_items()) == expected
    assert len(data.cache_items()) == len(expected)
    assert data.cache_items(["test"]) == [(index, 0) for index in data.dataset("test").indices]


def test_input_image_is_exactly_what_a_batch_of_that_view_holds(array_source):
    data = opened(array_source(8), augmentation=FLIP, views=4, batch_size=2)
    loader = data.train_dataloader()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        image, frame = data.input_image(int(batch.sample_index[0]), epoch)
        assert torch.equal(batch.images[0], image)
        assert batch.frames[0] == frame


def test_cached_embeddings_reach_every_loader_and_can_be_taken_away(array_source):
    data = opened(array_source(8))
    data.use_embeddings(lambda index, view: torch.full((1, 1, 1), float(index)))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        for batch in loader:
            assert batch.image_embeddings.flatten().tolist() == batch.sample_index.tolist()
    data.use_embeddings(None)
    assert next(iter(data.val_dataloader())).image_embeddings is None


def test_processes_share_the_items_between_them(array_source):
    data = opened(array_source(20), batch_size=2)
    shares = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shares.append(indices(data.test_dataloader()))
    data.trainer = None
    assert sorted(set(shares[0] + shares[1])) == indices(data.test_dataloader())
    assert len(shares[0]) == len(shares[1])


def test_worker_processes_serve_the_same_batches(array_source):
    alone = opened(array_source(8), augmentation=FLIP, views=2).train_dataloader()
    workers = opened(array_source(8), augmentation=FLIP, views=2, num_workers=1).train_dataloader()
    for loader in (alone, workers):
        loader.sampler.set_epoch(1)
    for one, other in zip(alone, workers, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.image_ids == other.image_ids
        assert other.epoch == 1


def test_loading_leaves_the_global_random_state_alone(array_source):
    data = opened(array_source(8), augmentation=FLIP, cache_embeddings=False)
    before = torch.get_rng_state()
    indices(data.train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_setup_takes_the_input_rule_from_the_model(array_source):
    data = SegmentationDataModule(array_source(8), "somewhere")
    model = SimpleNamespace(segmenter=SimpleNamespace(input_rule=RULE))
    data.trainer = SimpleNamespace(lightning_module=model, global_rank=0, world_size=1)
    data.setup("fit")
    assert data.dataset("train").settings.input_rule == RULE


def test_prediction_opens_images_without_masks_and_makes_no_split(image_folder):
    root = image_folder({f"{name}.png": np.zeros((4, 6), np.uint8) for name in "abc"}, {})
    data = SegmentationDataModule(ImageFolder(), str(root))
    data.open(RULE, require_masks=False)
    batches = list(data.predict_dataloader())
    assert batches[0].image_ids == ("a", "b", "c")
    assert not batches[0].masks.any()
    with pytest.raises(RuntimeError, match="no splits yet"):
        _ = data.splits


def test_training_takes_other_slices_than_evaluation(volumes):
    labels = np.zeros((4, 4, 9), np.uint8)
    labels[1:3, 1:3, 2:7] = 1
    for case in "abcde":
        volumes("images", case, np.random.default_rng(0).random((4, 4, 9)).astype(np.float32))
        root = volumes("labels", case, labels)
    source = NiftiVolumes(train_slices=SliceRule(count=1), slices=SliceRule(step=4))
    data = SegmentationDataModule(source, str(root))
    data.open(RULE)
    assert [source.position(index)[1] for index in data.dataset("train").indices] == [4, 4, 4]
    assert [source.position(index)[1] for index in data.dataset("test").indices] == [0, 4, 8]


def test_description_is_json_and_counts_cases_and_images(array_source):
    described = json.loads(json.dumps(opened(array_source(20), augmentation=FLIP, views=2).describe()))
    assert described["splits"]["test"] == {"patients": 2, "cases": 2, "images": 4}
    assert described["splits"]["how"]["seed"] == 0
    assert described["augmentation"]["horizontal_flip"] == 0.5


def test_label_names_follow_the_target(array_source):
    assert opened(array_source()).label_names == {1: "object"}
    assert opened(array_source(), target="per_label").label_names == {7: "disc"}
    assert opened(array_source(), target="per_class").label_names == {7: "disc"}


def test_per_class_serves_every_class_on_every_image_and_keeps_images_that_show_none(array_source, monkeypatch):
    source = array_source(20, empty=tuple(range(1, 20, 2)))
    monkeypatch.setattr(source, "label_names", lambda: {3: "absent", 7: "disc"})
    data = opened(source, target="per_class")
    batches = [*data.train_dataloader(), *data.test_dataloader()]
    for batch in batches:
        assert batch.labels.view(-1, 2).tolist() == [[3, 7]] * batch.n_images
        assert batch.image_index.tolist() == [row for row in range(batch.n_images) for _ in range(2)]
        shown = batch.masks.flatten(1).any(dim=1).view(-1, 2)
        assert shown.tolist() == [[False, int(index) % 2 == 0] for index in batch.sample_index]
    assert sum(batch.n_images for batch in batches) == 2 * (len(data.splits.train) + len(data.splits.test))


def test_per_class_without_any_label_asks_for_the_names(array_source, monkeypatch):
    source = array_source()
    monkeypatch.setattr(source, "label_names", dict)
    with pytest.raises(RecipeError, match=r"data\.source\.labels: target per_class needs every label by name"):
        opened(source, target="per_class")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmentation": FLIP}, r"data\.augmentation: .*Set data\.views: K .* data\.cache_embeddings: false"),
        ({"views": 3}, r"data\.views: 3 views need data\.augmentation"),
        ({"views": 0}, r"data\.views: expected at least 1, got 0"),
        ({"batch_size": 0}, r"data\.batch_size: expected at least 1"),
        ({"max_objects": 0}, r"data\.max_objects"),
        ({"max_objects": 2, "target": "per_class"}, r"data\.max_objects: .* Leave max_objects out"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(array_source, settings, message):
    with pytest.raises(RecipeError, match=message):
        SegmentationDataModule(array_source(), "somewhere", **settings)


def test_unknown_bundled_data_set_is_refused_with_those_there_are(array_source):
    data = SegmentationDataModule(array_source(), "sample:liver")
    with pytest.raises(RecipeError, match=r"no bundled data set 'liver'; there are \['carotid', 'hippocampus'\]"):
        data.open(RULE)


def test_priors_reach_every_loader_and_can_be_taken_away(array_source):
    data = opened(array_source(8))
    everywhere = torch.ones(1, 16, 20, dtype=torch.bool)
    data.use_priors(lambda index: AutomaticMasks(everywhere, torch.ones(1), torch.full((1,), float(index))))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        for batch in loader:
            assert batch.priors[:, 0, 0, 0].tolist() == batch.sample_index.tolist()
    data.use_priors(None)
    assert next(iter(data.val_dataloader())).priors is None


def test_description_names_the_settings_of_the_priors(array_source):
    data = opened(array_source(8), priors=PriorSettings(weights="random_tiny", points_per_side=8))
    assert json.loads(json.dumps(data.describe()))["priors"]["points_per_side"] == 8


def named(array_source, *cases):
    """Return an ArraySource of one image a case."""

    class Named(array_source):
        def case_ids(self):
            return cases

    return Named(len(cases))


FRAMES = tuple(f"patient{number:03d}_frame{frame:02d}" for number in range(12) for frame in (1, 9))


def test_patients_are_split_whole_by_a_pattern(array_source, tmp_path):
    data = SegmentationDataModule(named(array_source, *FRAMES), "somewhere", patient=r"^(patient\d+)_")
    data.open(RULE, run_folder=tmp_path)
    parts = [{data.patients[case] for case in part} for part in (data.splits.train, data.splits.val, data.splits.test)]
    assert [len(part) for part in parts] == [8, 2, 2]
    assert len(set.union(*parts)) == 12
    assert json.loads((tmp_path / "splits.json").read_text())["patients"]["patient003_frame09"] == "patient003"
    assert data.describe()["splits"]["test"] == {"patients": 2, "cases": 4, "images": 4}


def test_names_that_look_like_one_patients_files_are_said_aloud_and_refused_when_strict(array_source):
    with pytest.warns(DataWarning, match=r"data\.patient: patient000_frame01 and patient000_frame09 look .*24 cases of 12"):
        opened(named(array_source, *FRAMES))
    with pytest.raises(DataError, match=r"Set data\.patient: '\^\(\.\+\)_frame\\d\+\$'"):
        opened(named(array_source, *FRAMES), split=SplitSettings(strict=True))
    opened(named(array_source, *FRAMES), split=SplitSettings(strict=True), patient="^(.+)$")


def test_split_by_hand_that_tears_a_patient_is_refused(array_source, tmp_path):
    parts = {"train": list(FRAMES[:21]), "val": [FRAMES[21]], "test": list(FRAMES[22:])}
    (tmp_path / "mine.json").write_text(json.dumps(parts))
    with pytest.raises(DataError, match="1 patients stand in two parts: patient010"):
        opened(named(array_source, *FRAMES), split=SplitSettings(file=str(tmp_path / "mine.json")), patient=r"^(.+)_frame")


def test_every_slice_of_a_volume_is_predicted_though_few_are_scored(volumes):
    for case in "abcd":
        volumes("images", case, np.arange(18, dtype=np.int16).reshape(3, 3, 2).repeat(4, axis=2))
        root = volumes("labels", case, np.ones((3, 3, 8), np.uint8))
    data = SegmentationDataModule(NiftiVolumes(slices=SliceRule(count=2), train_slices=SliceRule(count=1)), str(root))
    data.open(RULE)
    assert [len(data.dataset(stage)) for stage in ("train", "val", "test", "predict")] == [2, 2, 2, 32]
    asked = SegmentationDataModule(NiftiVolumes(predict_slices=SliceRule(step=4)), str(root))
    asked.open(RULE, require_masks=False)
    assert len(asked.dataset("predict")) == 8


@pytest.mark.filterwarnings("ignore:.*may be inverted")  # masks of noise label the rim too
def test_fault_of_a_test_case_is_found_when_the_data_are_opened(volumes, tmp_path):
    for case in "abcdefgh":
        volumes("images", case, np.zeros((3, 3, 2), np.int16))
        root = volumes("labels", case, np.ones((3, 3, 2), np.uint8))
    data = SegmentationDataModule(NiftiVolumes(), str(root))
    data.open(RULE)
    (test_case, *_) = data.splits.test
    volumes("labels", test_case, np.full((3, 3, 2), -1, np.int16))
    with pytest.raises(DataError, match=rf"labels/{test_case}\.nii\.gz: 18 label values"):
        SegmentationDataModule(NiftiVolumes(), str(root)).open(RULE)


def test_patients_of_new_images_need_not_be_known(array_source, tmp_path):
    (tmp_path / "who.csv").write_text("case,patient\nanother,x\n")
    data = SegmentationDataModule(array_source(4), "somewhere", patient=str(tmp_path / "who.csv"))
    data.open(RULE, require_masks=False)
    assert len(data.dataset("predict")) == 4
    with pytest.raises(DataError, match=r"2 cases have no patient \(case_0, case_1\)"):
        data.open(InputRule(side=16))


def test_classes_are_named_and_never_read_from_masks(volumes, monkeypatch):
    for case in "abcd":
        volumes("images", case, np.zeros((3, 3, 2), np.int16))
        root = volumes("labels", case, np.ones((3, 3, 2), np.uint8))
    with pytest.raises(RecipeError, match="test masks must not decide which classes there are"):
        SegmentationDataModule(NiftiVolumes(), str(root), target="per_class").open(RULE)
    monkeypatch.setattr(NiftiVolumes, "label_names", lambda self: pytest.fail("masks were read for their labels"))
    data = SegmentationDataModule(NiftiVolumes(labels={"a": [1], "b": [2]}), str(root), target="per_class")
    data.open(RULE)
    assert data.label_names == {1: "a", 2: "b"}
