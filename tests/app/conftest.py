"""The tuned model of the server's tests, and volumes for it."""

import nibabel
import numpy as np
import pytest

from medsam_tune.app.models import Models
from tests.serve.conftest import model, tuned

__all__ = ["model", "tuned"]

SHAPE = (30, 20, 5)
# Stored from right to left and from front to back, so that slices are shown as they are stored, but for the turn.
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


def write_nifti(path, seed=0):
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)
    return path


@pytest.fixture
def models(model):
    return Models.of(model)


@pytest.fixture
def volume(tmp_path):
    return write_nifti(tmp_path / "p01.nii.gz")
