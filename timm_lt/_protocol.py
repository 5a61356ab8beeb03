"""The protocol: the rules of every figure. One text, which documentation, reports and model cards show."""

from pathlib import Path

# address of the documentation's protocol page; None: reports and cards hold the text themselves
PROTOCOL_URL: str | None = None


def protocol_text() -> str:
    """The rules as Markdown, the text of ``docs/protocol.md``."""
    return Path(__file__).with_name('protocol.md').read_text(encoding='utf-8')
