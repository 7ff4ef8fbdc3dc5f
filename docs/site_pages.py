"""Pages of the site that nobody writes by hand: the API, a page a room, and the documents at the top of the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
API, REPOSITORY = "api", "repository"
DOCUMENTS = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md")
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")


def rooms() -> dict[str, str]:
    """Return the rooms of the package, and the first line of what each says of itself."""
    package = ROOT / "medsam_tune"
    found = {}
    for path in sorted([*package.glob("[a-z]*.py"), *package.glob("[a-z]*/__init__.py")]):
        docstring = path.read_text(encoding="utf-8").partition('"""')[2]
        found[path.stem if path.parent == package else path.parent.name] = docstring.partition("\n")[0].rstrip('"')
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    said = rooms()
    table = "\n".join(f"| [{room}]({room}.md) | {line} |" for room, line in said.items())
    pages = {f"{API}/index.md": f"# API\n\n| Room | Holds |\n|---|---|\n{table}\n"}
    pages |= {f"{API}/{room}.md": f"# {room}\n\n::: medsam_tune.{room}\n" for room in said}
    pages |= {f"{REPOSITORY}/{name}": (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links between the documents of the repository and those under docs/ to their places on the site."""
    uri = page.file.src_uri
    in_repository = uri.removeprefix(f"{REPOSITORY}/") if uri.startswith(f"{REPOSITORY}/") else f"docs/{uri}"

    def place(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), match["target"]))
        on_site = f"{REPOSITORY}/{target}" if target in DOCUMENTS else target.removeprefix("docs/")
        if files.get_file_from_path(on_site) is not None:
            return f"[{match['text']}]({posixpath.relpath(on_site, posixpath.dirname(uri) or '.')}{match['anchor'] or ''})"
        # A recipe or a licence is no page; a link to nothing stays, and fails the build.
        return match["text"] if (ROOT / target).exists() else match[0]

    return _LINK.sub(place, markdown)
