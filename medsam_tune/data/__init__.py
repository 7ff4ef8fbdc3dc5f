"""Images, masks and splits: sources, transforms, batches, and the data module that training sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.coco import CocoImages
from medsam_tune.data.dataset import SegmentationDataset, Views, collate
from medsam_tune.data.image_folder import ImageFolder
from medsam_tune.data.image_shards import ImageShards
from medsam_tune.data.intensity import Intensity
from medsam_tune.data.medsam_files import MedsamNpy, MedsamNpz
from medsam_tune.data.nifti_volumes import NiftiVolumes
from medsam_tune.data.sample import sample_folder
from medsam_tune.data.sampler import Draw, EpochSampler
from medsam_tune.data.slices import SliceRule
from medsam_tune.data.split_file import load_splits, save_splits
from medsam_tune.data.splits import Splits, SplitSettings, make_splits
from medsam_tune.data.targets import apply_target
from medsam_tune.data.tiles import TiledSource, Tiles
from medsam_tune.data.transforms import Augmentation, augment, view_seed
from medsam_tune.data.unlabelled import UnlabelledFolder
from medsam_tune.data.volumes import VolumeSource

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule

__all__ = [
    "Augmentation",
    "CocoImages",
    "Draw",
    "EpochSampler",
    "ImageFolder",
    "ImageShards",
    "Intensity",
    "MedsamNpy",
    "MedsamNpz",
    "NiftiVolumes",
    "SegmentationDataModule",
    "SegmentationDataset",
    "SegmentationSource",
    "SliceRule",
    "SplitSettings",
    "Splits",
    "TiledSource",
    "Tiles",
    "UnlabelledFolder",
    "Views",
    "VolumeSource",
    "apply_target",
    "augment",
    "collate",
    "load_splits",
    "make_splits",
    "sample_folder",
    "save_splits",
    "view_seed",
]


def __getattr__(name: str) -> object:
    # Lightning takes seconds to import; only the data module needs it.
    if name == "SegmentationDataModule":
        from medsam_tune.data.datamodule import SegmentationDataModule

        return SegmentationDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
