"""The images of Label Studio's tasks: files of a folder on this machine, or fetched from the Label Studio that was named."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from medsam_tune.data.formats import RasterFormat
from medsam_tune.inference.new_files import NewFile
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.serve.errors import Refusal

if TYPE_CHECKING:
    import httpx

_MOST_OPEN = 16
_SECONDS = 30.0


class TaskImages:
    """Open the image of a task, and keep those that were asked about last.

    Nothing else is opened: a file must lie below the folder, and only the named Label Studio is called, so that a task cannot
    make this machine read its own files or call others.

    Args:
        data: What the model was trained on.
        folder: Where images lie on this machine, or None.
        address: Of Label Studio, or None.
        token: Of a user of it; access tokens and legacy tokens are both known.
        most_bytes: Of a fetched file.
    """

    def __init__(
        self, data: TrainedData, *, folder: Path | None, address: str | None, token: str | None, most_bytes: int
    ) -> None:
        self._data, self._folder, self._most_bytes = data, folder, most_bytes
        self._address, self._token = (address or "").rstrip("/"), token
        self._open: OrderedDict[str, SlicedFile] = OrderedDict()
        self._fetched = tempfile.TemporaryDirectory(prefix="medsam-tune-")

    def open(self, stated: str) -> SlicedFile:
        """Return the image that a task names.

        Raises:
            Refusal: If it is not to be had.
            DataError: If it cannot be read.
        """
        if stated in self._open:
            self._open.move_to_end(stated)
            return self._open[stated]
        path = self._find(stated) or self._fetch(stated)
        self._open[stated] = found = SlicedFile(NewFile(path, path.name, RasterFormat()), self._data)
        while len(self._open) > _MOST_OPEN:
            _, old = self._open.popitem(last=False)
            if old.file.path.parent == Path(self._fetched.name):
                old.file.path.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        """Remove what was fetched."""
        self._fetched.cleanup()

    def _find(self, stated: str) -> Path | None:
        """Return the file of the folder whose path ends as the stated one does, the longest end first."""
        if self._folder is None:
            return None
        root = self._folder.resolve()
        parts = _path_of(stated).parts
        for start in range(len(parts)):
            path = root.joinpath(*parts[start:]).resolve()
            if path.is_relative_to(root) and path.is_file():
                return path
        # Label Studio puts eight letters and a dash before the name of an uploaded file.
        name = parts[-1] if parts else ""
        path = (root / name[9:]).resolve()
        return path if name[8:9] == "-" and path.parent == root and path.is_file() else None

    def _fetch(self, stated: str) -> Path:
        target = f"{self._address}{stated}" if stated.startswith("/") else stated
        if not self._address or not target.startswith(f"{self._address}/"):
            raise Refusal(
                404,
                f"the image {PurePosixPath(urlsplit(stated).path).name} is not to be had: start the server with --images DIR, "
                "the folder that holds it, or with --label-studio URL, where it was uploaded.",
            )
        path = Path(self._fetched.name) / f"{len(list(Path(self._fetched.name).iterdir()))}-{_path_of(stated).name}"
        path.write_bytes(self._download(target))
        return path

    def _download(self, target: str) -> bytes:
        import httpx

        try:
            with httpx.Client(timeout=_SECONDS) as client, client.stream("GET", target, headers=self._login(client)) as answer:
                answer.raise_for_status()
                body = bytearray()
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > self._most_bytes:
                        raise Refusal(
                            413, "the image is larger than this server takes. Start it with a larger --max-gigabytes."
                        )
                return bytes(body)
        except httpx.HTTPError as error:
            raise Refusal(
                502, f"Label Studio did not give the image ({type(error).__name__}). Check its address and token."
            ) from error

    def _login(self, client: httpx.Client) -> dict[str, str]:
        """Return the header that logs in: a legacy token, or what a personal access token (a JWT) is changed for."""
        if not self._token:
            return {}
        if self._token.count(".") != 2:
            return {"Authorization": f"Token {self._token}"}
        answer = client.post(f"{self._address}/api/token/refresh", json={"refresh": self._token})
        answer.raise_for_status()
        return {"Authorization": f"Bearer {answer.json()['access']}"}


def _path_of(stated: str) -> PurePosixPath:
    """Return the path that an address names; Label Studio's local files stand in a query.

    Examples:
        >>> _path_of("/data/upload/1/0a1b2c3d-x%20y.png"), _path_of("/data/local-files/?d=set/x.png").name
        (PurePosixPath('data/upload/1/0a1b2c3d-x y.png'), 'x.png')
    """
    parts = urlsplit(stated)
    local = parse_qs(parts.query).get("d")
    path = PurePosixPath(local[0] if local else unquote(parts.path))
    return PurePosixPath(*(part for part in path.parts if part not in ("/", "..")))
