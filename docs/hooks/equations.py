"""Equations as MathML at build time, so that pages need no script and no other host."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs for the HTML of each page."""
    content = INLINE.sub(lambda found: mathml(found[1]), content)
    return BLOCK.sub(lambda found: f'<div class="equation">{mathml(found[1], "block")}</div>', content)


def mathml(equation: str, display: str = 'inline') -> str:
    """The element of an equation in LaTeX, as it is written in HTML."""
    element = convert(html.unescape(equation.strip()), display=display)
    if '<mi>\\' in element:
        raise ValueError(f'a command of the equation {equation.strip()!r} has no MathML')
    return element
