import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.weights import WEIGHTS
from medsam_tune.cache import PriorOrigin, PriorSettings, PriorStore
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.files import sha256_of
from medsam_tune.inference import fill_priors as module
from medsam_tune.inference.fill_priors import PriorLookup, build_prior_network, count_masks, fill_priors, prior_origin
from medsam_tune.types import AutomaticMasks

IDENTITY = "0123456789abcdef"
ITEMS = [3, 5, 8, 9]


def load(item):
    return torch.full((3, 6, 7), float(item))


class Generator:
    """Find as many masks as the image's grey value says, modulo 4, and remember which images came."""

    def __init__(self, fail_at=None):
        self.fail_at, self.seen, self.built = fail_at, [], 0

    def build(self):
        self.built += 1
        return self.generate

    def generate(self, image):
        if self.fail_at is not None and len(self.seen) >= self.fail_at:
            raise KeyboardInterrupt
        grey = int(image[0, 0, 0])
        self.seen.append(grey)
        n = grey % 4
        return AutomaticMasks(torch.ones(n, 6, 7, dtype=torch.bool), torch.full((n,), 0.5), torch.full((n,), grey / 100))


def store_at(folder):
    return PriorStore(folder, IDENTITY)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def test_each_different_image_is_segmented_once_and_found_by_its_index(tmp_path):
    generator = Generator()
    items = [*ITEMS, 5]
    filled = fill_priors(store_at(tmp_path), items, load, generator.build)
    assert (generator.seen, generator.built, filled.made) == (ITEMS, 1, 4)
    find = PriorLookup(store_at(tmp_path), filled.keys)
    assert [len(find(item).masks) for item in ITEMS] == [3, 1, 0, 1]
    assert find(9).stability_score.tolist() == pytest.approx([0.09])


def test_full_store_builds_no_network(tmp_path):
    fill_priors(store_at(tmp_path), ITEMS, load, Generator().build)
    again = Generator()
    filled = fill_priors(store_at(tmp_path), ITEMS, load, again.build)
    assert (filled.made, again.built, set(filled.keys)) == (0, 0, set(ITEMS))


def test_interrupted_fill_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_IMAGES", 2)
    with pytest.raises(KeyboardInterrupt):
        fill_priors(store_at(tmp_path), ITEMS, load, Generator(fail_at=3).build)
    again = Generator()
    fill_priors(store_at(tmp_path), ITEMS, load, again.build)
    assert again.seen == [8, 9]


def test_slow_images_are_written_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fill_priors(store_at(tmp_path), ITEMS, load, Generator(fail_at=3).build)
    assert len(store_at(tmp_path)) == 3


def test_processes_share_the_images_without_talking(tmp_path):
    generators = [Generator(), Generator()]
    filled = [fill_priors(store_at(tmp_path), [*ITEMS, 3], load, generators[rank].build, rank=rank, world=2) for rank in (1, 0)]
    assert [generator.seen for generator in generators] == [[3, 8], [5, 9]]
    assert filled[0].keys == filled[1].keys
    find = PriorLookup(store_at(tmp_path), filled[0].keys)
    assert [len(find(item).masks) for item in ITEMS] == [3, 1, 0, 1]


def test_damaged_entry_is_made_again(tmp_path):
    fill_priors(store_at(tmp_path), ITEMS[:1], load, Generator().build)
    (shard,) = tmp_path.glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 0xFF
    shard.write_bytes(content)
    again = Generator()
    filled = fill_priors(store_at(tmp_path), ITEMS[:1], load, again.build)
    assert again.seen == [3]
    assert len(PriorLookup(store_at(tmp_path), filled.keys)(3).masks) == 3


def test_image_that_changes_between_two_reads_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must return the same pixels at every call, not so for item 3"):
        fill_priors(store_at(tmp_path), [3], lambda item: torch.rand(3, 4, 4), Generator().build)


def test_images_without_a_mask_are_counted(tmp_path):
    store = store_at(tmp_path)
    filled = fill_priors(store, ITEMS, load, Generator().build)
    counts = count_masks(store, filled.keys.values())
    assert (counts.images, counts.masks, counts.empty) == (4, 5, 1)
    assert str(counts) == "4 images, 1.2 masks an image, 1 images without a mask"


def test_released_weights_are_identified_by_their_file_without_being_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SamBackbone", None)
    checkpoint = tmp_path / "mine.pth"
    checkpoint.write_bytes(b"not even weights")
    origin = prior_origin(PriorSettings(weights="sam_vit_b", checkpoint=str(checkpoint)))
    assert origin.weights_sha256 == sha256_of(checkpoint)
    assert origin.rule == WEIGHTS["sam_vit_b"].input_rule()


def test_identity_is_that_of_the_network_that_makes_the_priors():
    for settings in (PriorSettings("random_tiny"), PriorSettings("lite_medsam")):
        network = build_prior_network(settings)
        assert prior_origin(settings) == PriorOrigin(settings, network.weights.sha256, network.input_rule)
        assert isinstance(network, SamBackbone)
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_unknown_weights_are_refused_by_the_key_of_the_priors():
    with pytest.raises(RecipeError, match=r"^data\.priors\.weights: 'sam_vit_x' is unknown. Known: lite_medsam"):
        prior_origin(PriorSettings(weights="sam_vit_x"))


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none.pth: there is no such file. Correct data\.priors\.checkpoint"):
        prior_origin(PriorSettings(checkpoint=str(tmp_path / "none.pth")))
