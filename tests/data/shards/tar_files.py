"""Small tar files, written by Python's tarfile and not by this package."""

import io
import tarfile

import numpy as np
from PIL import Image


def png(values):
    """Return an array as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(content, "PNG")
    return content.getvalue()


def write_tar(path, members, form=tarfile.GNU_FORMAT):
    """Write name and content of each member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pair(key, level=90, size=(8, 10)):
    """Return the members of a sample: an image of one grey level and a mask with a square."""
    mask = np.zeros(size, np.uint8)
    mask[2:5, 3:7] = 1
    return [(f"{key}.png", png(np.full(size, level))), (f"{key}.mask.png", png(mask))]
