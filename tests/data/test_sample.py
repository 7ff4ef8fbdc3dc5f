import pytest

from medsam_tune.data import ImageFolder, NiftiVolumes, SliceRule, sample_folder
from medsam_tune.data.sample import sample_names


def test_hippocampus_volumes_pair_and_show_both_parts():
    source = NiftiVolumes(axis="coronal", slices=SliceRule(count=3), labels={"anterior": [1], "posterior": [2]})
    source.open(sample_folder("hippocampus"))
    assert len(set(source.case_ids())) == 40
    labels = {int(label) for index in source.select(range(len(source)), "evaluate")[:30] for label in source[index].labels}
    assert labels == {1, 2}
    assert source[0].spacing_mm == (1.0, 1.0)


def test_carotid_images_are_grouped_by_scan_and_show_one_lumen():
    source = ImageFolder(case_pattern=r"^(.+)_slice_")
    source.open(sample_folder("carotid"))
    assert (len(source), len(set(source.case_ids()))) == (20, 8)
    assert 0.005 < float(source[0].masks.dense()[0].float().mean()) < 0.1


@pytest.mark.parametrize("name", sample_names())
def test_every_bundled_data_set_says_where_it_comes_from(name):
    text = (sample_folder(name) / "ATTRIBUTION.md").read_text()
    for part in ("creativecommons.org/licenses/", "Changes", "Cite"):
        assert part in text
