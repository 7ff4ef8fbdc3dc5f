"""Writers of small data folders, and a source that lives in memory."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.data import SegmentationSource
from medsam_tune.samples import Sample


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    # What was checked is remembered between starts, but not between tests.
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def image_folder(tmp_path):
    """Return a function that writes ``images/<name>`` and ``masks/<name>`` from arrays; the name has the ending."""

    def write(images, masks):
        for folder, arrays in (("images", images), ("masks", masks)):
            (tmp_path / folder).mkdir(exist_ok=True)
            for name, values in arrays.items():
                path = tmp_path / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path)
        return tmp_path

    return write


@pytest.fixture
def volumes(tmp_path):
    """Return a function that writes ``<folder>/<name>.nii.gz`` with an affine."""

    def write(folder, name, values, affine=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, tmp_path / folder / f"{name}.nii.gz")
        return tmp_path

    return write


class ArraySource(SegmentationSource):
    """Serve n images of 16 x 20 with one 6 x 6 object each (none where ``empty`` says so), two images a case."""

    def __init__(self, n: int = 8, empty: tuple[int, ...] = (), pieces: int = 1) -> None:
        self.n, self.empty, self.pieces, self.opened = n, empty, pieces, 0

    def open(self, root, *, require_masks=True):
        self.opened += 1

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        image = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(index)) * 255
        masks = torch.zeros(1, 16, 20, dtype=torch.bool)
        for piece in range(self.pieces):
            masks[0, 4:10, 3 + 4 * piece : 6 + 4 * piece] = True
        if index in self.empty:
            masks = masks[:0]
        labels = torch.full((len(masks),), 7)
        return Sample(image, masks, labels, image_id=f"image_{index}", case_id=self.case_ids()[index], index=index)

    def case_ids(self):
        return tuple(f"case_{index // 2}" for index in range(self.n))

    def image_ids(self):
        return tuple(f"image_{index}" for index in range(self.n))

    def label_names(self):
        return {7: "disc"}

    def named_labels(self):
        return self.label_names()

    def describe(self):
        return {"source": "ArraySource"}


@pytest.fixture
def array_source():
    """Return the class, so a test chooses its size."""
    return ArraySource
