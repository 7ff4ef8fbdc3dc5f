from pathlib import Path

import numpy as np

from medsam_tune.data.formats import FORMATS, NiftiFormat, NpyFormat, NpzFormat, RasterFormat, format_of
from medsam_tune.data.volumes import VolumeSource


class OwnScans(NiftiFormat):
    endings = (".scan.nii", ".nii")


def test_a_file_is_read_by_the_longest_ending_that_fits():
    found = [type(format_of(Path(name))) for name in ("a.NII.GZ", "a.nii", "a.npz", "a.npy", "a.JPEG")]
    assert found == [NiftiFormat, NiftiFormat, NpzFormat, NpyFormat, RasterFormat]
    assert format_of(Path("a.txt")) is None
    own = (OwnScans(), *FORMATS)
    assert [type(format_of(Path(name), own)) for name in ("a.scan.nii", "a.nii", "a.nii.gz")] == [
        OwnScans,
        OwnScans,
        NiftiFormat,
    ]


def test_arrays_of_0_to_1_are_grey_levels_by_their_own_rule(tmp_path):
    np.save(tmp_path / "a.npy", np.linspace(0.2, 0.4, 12, dtype=np.float32).reshape(3, 4))
    source = VolumeSource(NpyFormat())
    source.open_images({"a": tmp_path / "a.npy"})
    # 0.2 and 0.4 times 255; percentiles of the image itself would stretch them to 0 and 255.
    assert [source[0].image.min().item(), source[0].image.max().item()] == [51, 102]
