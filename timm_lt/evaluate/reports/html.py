"""Parts that the HTML pages share: page, pictures, tables, links to files."""

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..._text import printable
from .assets import CSS, SCRIPT
from .plots import to_svg

FOOTER = (
    'Accuracies and ECE in percent. A split is the mean over its classes; a split without a class or without a test '
    'image is absent, not 0. Epochs are counted from 1. Made by timm_lt.evaluate.')


def page(title: str, body: str) -> str:
    """A whole page: one file that needs neither network nor other files."""
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<title>{escape(title)}</title><style>{CSS}</style>')
    return (
        f"<!doctype html><html lang='en'><head>{head}</head>"
        f'<body>{body}<footer>{FOOTER}</footer><script>{SCRIPT}</script></body></html>\n')


def picture(draw: Callable[..., Any], name: str, caption: str = '', full: bool = False) -> str:
    """A plot in two layouts, of which a narrow screen shows the narrow one.

    Args:
        draw: Returns the figure; takes ``narrow``.
        name: Of the plot, for readers who do not see it.
        caption: HTML.
        full: Whether the plot takes the width of the page.
    """
    wide, narrow = (data_uri('image/svg+xml', to_svg(draw(narrow=narrow)).encode()) for narrow in (False, True))
    note = f'<figcaption>{caption}</figcaption>' if caption else ''
    return (
        f"<figure{' class=full' if full else ''}><picture><source media='(max-width: 640px)' srcset='{narrow}'>"
        f"<img alt='{escape(title_of(name))}' src='{wide}'></picture>{note}</figure>")


def download(name: str, kind: str, content: bytes) -> str:
    """A link that saves a file out of the page."""
    return f"<a download='{escape(name)}' href='{data_uri(kind, content)}'>{escape(name)}</a>"


def data_uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def table(head: Sequence[str], rows: Sequence[str], kind: str = '', text: Sequence[str] = ()) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        head: HTML of each heading.
        rows: Cells of each row, a run of ``<td>``.
        kind: Class of the table.
        text: Headings over text, which begin at the left as their cells do.
    """
    heads = ''.join(f"<th{' class=text' if h in text else ''}>{h}</th>" for h in head)
    body = ''.join(f'<tr>{row}</tr>' for row in rows)
    return (
        f"<div class='scroll'><table class='{kind}'><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>")


def cell(value: float | None, form: str = '.2f') -> str:
    return "<td class='absent' data-v=''>absent</td>" if value is None else f'<td>{value:{form}}</td>'


def facts_table(facts: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><td>{escape(title_of(k))}</td><td>{escape(v)}</td></tr>'
        for k, v in facts.items() if v not in (None, '')]
    return f"<table class='facts'>{''.join(rows)}</table>"


def note(text: str) -> str:
    """A highlighted paragraph; ``text`` is HTML."""
    return f"<p class='note'>{text}</p>"


def title_of(key: Any) -> str:
    return str(key).replace('_', ' ')


def escape(value: Any) -> str:
    """Any value as escaped text."""
    return '' if value is None else html.escape(printable(value))
