"""Who owns the ``lightning`` command on PATH, and the line that gives it back to us.

pip and uv let the distribution installed last overwrite the script without a word, and delete it when either is uninstalled.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from medsam_tune.files import write_text

# As pip writes it.
_SCRIPT = """\
#!{python}
import sys
from medsam_tune.cli.lightning_shim import main
if __name__ == "__main__":
    sys.argv[0] = sys.argv[0].removesuffix(".exe")
    sys.exit(main())
"""
OWNERS = {"medsam_tune": "medsam-tune", "lightning_sdk": "lightning-sdk"}


def lightning_owner(script: Path) -> str | None:
    """Return the distribution whose console script this is, or None for one we do not know."""
    if zipfile.is_zipfile(script):  # Windows: a launcher with the script zipped behind it
        with zipfile.ZipFile(script) as archive:
            source = archive.read("__main__.py").decode(errors="replace")
    else:
        source = script.read_bytes()[:4096].decode(errors="replace")
    return next((owner for module, owner in OWNERS.items() if f"from {module}" in source), None)


def describe_owner() -> list[str]:
    """Return lines for people: the owner, and what to type when it is not us."""
    found = shutil.which("lightning")
    if found is None:
        here = shutil.which("lightning", path=str(Path(sys.executable).parent))
        missing = f"{here} is not on PATH: activate this environment" if here else f"not installed; to have it: {repair_line()}"
        return [missing, "`python -m medsam_tune run RECIPE` works all the same"]
    script = Path(found)
    owner = lightning_owner(script)
    if owner == "medsam-tune":
        return [f"{script}: ours; `lightning run RECIPE.yaml` works", *_other_environment(script)]
    return [
        f"{script}: belongs to {owner or 'something else'}, so `lightning run RECIPE.yaml` fails; `medsam-tune run` does not",
        f"to take it back: {repair_line()}",
        *_other_environment(script),
    ]


def take_back(folder: Path | None = None) -> list[str]:
    """Write our ``lightning`` over another package's in this environment, and say what was done.

    Args:
        folder: Where the environment's commands lie; that of this Python by default.

    Returns:
        A line, or none where the command is ours already.

    Raises:
        DataError: If it cannot be written.
    """
    script = (folder or Path(sys.executable).parent) / "lightning"
    if script.with_suffix(".exe").is_file():
        owner = lightning_owner(script.with_suffix(".exe"))
        return [] if owner == "medsam-tune" else [f"{script}.exe: not changed; type: {repair_line()}"]
    if script.is_file() and lightning_owner(script) == "medsam-tune":
        return []
    before = f"in place of {lightning_owner(script) or 'something else'}'s" if script.is_file() else "where none was"
    write_text(script, _SCRIPT.format(python=sys.executable))
    script.chmod(0o755)
    return [f"{script}: written, {before}"]


def repair_line() -> str:
    """Return the command that installs our scripts again and touches nothing else."""
    checkout = _editable_checkout()
    what = "medsam-tune" if checkout is None else f"-e {shlex.quote(str(checkout))}"
    return f"pip install --force-reinstall --no-deps {what}"


def _other_environment(script: Path) -> list[str]:
    if script.parent.resolve() == Path(sys.executable).parent.resolve() or script.is_relative_to(sys.prefix):
        return []
    return [f"it belongs to another environment than this Python, {sys.executable}"]


def _editable_checkout() -> Path | None:
    try:
        record = distribution("medsam-tune").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    origin = json.loads(record) if record else {}
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(origin["url"]).path))
