"""Masks on which the studies' released code went wrong."""

import numpy as np


def empty(height=60, width=60):
    return np.zeros((height, width), bool)


def disc(centre, radius, height=60, width=60):
    rows, columns = np.mgrid[:height, :width]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def ring():
    return disc((29, 29), 20) & ~disc((29, 29), 12)


def c_shape():
    shape = ring()
    shape[20:40, 30:] = False
    return shape


def rectangle(top, left, bottom, right, height=60, width=60):
    mask = empty(height, width)
    mask[top:bottom, left:right] = True
    return mask


def four_pieces():
    """Pieces of 64, 36, 16 and 4 pixels, of which two touch the border; the image is not square."""
    mask = empty(40, 70)
    mask[2:10, 2:10] = mask[30:36, 20:26] = mask[0:4, 60:64] = mask[38:40, 68:70] = True
    return mask


TROUBLESOME = {
    "ring": ring(),
    "C": c_shape(),
    "four pieces": four_pieces(),
    "one pixel": rectangle(30, 30, 31, 31),
    "three pixels": rectangle(10, 10, 11, 13),
    "four pixels at the border": rectangle(58, 58, 60, 60),
    "whole image": np.ones((12, 9), bool),
    "all but one pixel": ~rectangle(3, 3, 4, 4, 12, 9),
    "not square": rectangle(3, 50, 11, 69, 20, 90),
    "thin line": rectangle(10, 0, 11, 60),
}
