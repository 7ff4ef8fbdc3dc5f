"""The one place where the name of an image or a case becomes the name of a file."""

from __future__ import annotations

import hashlib
import re

# A file system takes 255 bytes; ".nii.gz" and the prefix of a temporary file need some of them.
_LONGEST_BYTES = 180
# What ends a name, steers a terminal, or separates folders on some system, and an escape that stands in a name already.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|%(?=[0-9A-Fa-f]{2})")


def file_name(name: str) -> str:
    """Return the path of a name's file below an output folder, without ending: it never leaves that folder.

    ``/`` makes sub-folders, as in the names of images in sub-folders. Parts that mean another place (``..``, ``.``, an empty
    part, so a path from the root too) and characters that no file name should have are written as ``%`` and two digits, and
    what is too long is cut and ends in a checksum. Two names never give one file.

    Examples:
        >>> [file_name(name) for name in ("p01/slice 3", "../../x", "/etc/x", "50%_dose", "a%2Fb")]
        ['p01/slice 3', '%2E%2E/%2E%2E/x', '%00/etc/x', '50%_dose', 'a%252Fb']
    """
    return "/".join(_safe_part(part) for part in name.split("/"))


def flat_file_name(name: str) -> str:
    """Return ``file_name`` as one part: ``/`` becomes ``__``, and underscores that could be taken for it become ``%5F``.

    Examples:
        >>> flat_file_name("p01/slice 3"), flat_file_name("p01__slice 3")
        ('p01__slice 3', 'p01_%5Fslice 3')
    """
    return _shortened("__".join(_without_separator(_safe_part(part)) for part in name.split("/")), name)


def _safe_part(part: str) -> str:
    if part == "":
        return "%00"
    if part in (".", ".."):
        return part.replace(".", "%2E")
    return _shortened(_UNSAFE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", part), part)


def _without_separator(part: str) -> str:
    inner = part.replace("__", "_%5F")
    return re.sub(r"^_|_$", "%5F", inner)


def _shortened(safe: str, name: str) -> str:
    if len(safe.encode()) <= _LONGEST_BYTES:
        return safe
    checksum = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{safe.encode()[:_LONGEST_BYTES].decode(errors='ignore')}%{checksum}"
