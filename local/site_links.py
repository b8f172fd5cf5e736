"""A hook of mkdocs: what the pages say about files outside docs/ stays true in the site.

A Markdown file that a page links to, such as bench/README.md, becomes a page as well; a link to code becomes its path.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md", "deploy/terraform/README.md")
"""The files outside docs/ that are pages of the site too. They are reached by links, and stand in no menu."""
_LINK: Final = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside."""
    for name in PAGES:
        page = File.generated(config, _address(name), content=(ROOT / name).read_text())
        page.inclusion = page.inclusion.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point each link at the page that its target has become."""
    source = next((name for name in PAGES if _address(name) == page.file.src_uri), f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def pointed(link: re.Match[str]) -> str:
        text, target, anchor = link[1], posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2])), link[3] or ""
        if target == "README.md":
            target, anchor = "docs/index.md", ""
        if target.startswith("docs/"):
            return f"[{text}]({posixpath.relpath(target.removeprefix('docs/'), here or '.')}{anchor})"
        if target in PAGES:
            return f"[{text}]({posixpath.relpath(_address(target), here or '.')}{anchor})"
        return text if target in text else f"{text} (`{target}`)"

    return _LINK.sub(pointed, markdown)


def _address(name: str) -> str:
    """Where a file from outside stands in the site. A README would become the index of its folder."""
    return f"outside/{name.replace('/', '-').replace('README', 'about').lower()}"
