"""Roles of reStructuredText in docstrings, such as ``:class:``, left out of the API pages."""

import re
from typing import Any

ROLE = re.compile(r':(?:attr|class|data|exc|func|meth|mod):(?=<code>)')


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs for the HTML of each page."""
    return ROLE.sub('', content)
