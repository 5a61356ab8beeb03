"""Files of the repository that pages name by a link: copied into the site, so that links work there too.

A page links to ``../benchmarks/results/...`` as it lies in the repository. The site holds the file under
``repository/``.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r'(\]\()((?:\.\./)+[^)\s#]+)')
FENCE = re.compile(r'(```.*?```)', re.DOTALL)


def outside(page: str, link: str) -> str | None:
    """Path in the repository of a link that leaves ``docs/``, else None."""
    path = posixpath.normpath(posixpath.join('docs', posixpath.dirname(page), link))
    return None if path.startswith(('docs/', '..')) else path


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Called by mkdocs with all files: adds those that pages link to."""
    wanted = {
        path for file in files.documentation_pages() for link in LINK.findall(file.content_string)
        if (path := outside(file.src_uri, link[1]))}
    for path in sorted(wanted):
        source = ROOT / path
        if source.is_file():
            name = f'repository/{path}' + ('.txt' if path.endswith('.md') else '')
            files.append(File.generated(config, name, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for the text of each page: points links at the copies."""
    here = posixpath.dirname(page.file.src_uri)

    def copied(found: re.Match) -> str:
        path = outside(page.file.src_uri, found[2])
        if path is None:
            return found[0]
        name = f'repository/{path}' + ('.txt' if path.endswith('.md') else '')
        return found[1] + posixpath.relpath(name, here or '.')

    parts = FENCE.split(markdown)
    return ''.join(part if part.startswith('```') else LINK.sub(copied, part) for part in parts)
