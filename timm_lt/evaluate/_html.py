"""What both HTML pages share: style, tables, pictures."""

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

from .._text import printable
from ..class_distribution import SPLIT_NAMES
from . import _style

DPI = 180  # of the pictures, drawn at about twice the screen's resolution
CSS = """
:root { --ink: #1f2328; --soft: #5b6770; --line: #e0e4e8; --pale: #f5f7f9; --deep: #17375e; --warm: #f2a65a; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: var(--ink); background: #fff; margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; padding-bottom: 6px; border-bottom: 2px solid var(--deep); }
p.lead { color: var(--soft); margin: 0 0 24px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 20px 0; }
@media (max-width: 640px) { .tiles { grid-template-columns: repeat(2, 1fr); } }
.tile { background: var(--pale); border-top: 4px solid var(--deep); padding: 10px 14px 12px; }
.tile.medium { border-color: #2f8f9d; } .tile.few { border-color: var(--warm); } .tile.other { border-color: #8b929a; }
.tile b { display: block; font-size: 25px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span, .tile small { color: var(--soft); font-size: 12.5px; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--ink); background: #fff; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; white-space: normal; overflow-wrap: break-word; }
td.best { font-weight: 700; } td small { color: var(--soft); display: block; }
.absent { color: #8b929a; font-style: italic; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { width: 230px; color: var(--soft); }
figure { margin: 20px 0 8px; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: 13px; max-width: 75ch; margin-top: 4px; }
.pair { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.pair figure { flex: 1 1 320px; min-width: 0; }
.pair div { flex: 1 1 380px; } h3 { font-size: 14px; margin: 20px 0 4px; }
.bar { display: inline-block; height: 9px; background: var(--deep); vertical-align: middle; margin-left: 8px; }
.number { display: inline-block; width: 44px; text-align: right; }
.bar.medium { background: #2f8f9d; } .bar.few { background: var(--warm); }
.note { border-left: 4px solid var(--warm); background: #fdf6ed; padding: 8px 14px; margin: 12px 0; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--deep); font-weight: 600; }
footer { color: var(--soft); font-size: 13px; margin-top: 48px; border-top: 1px solid var(--line); padding-top: 12px; }
@media print { body { padding: 0; } h2 { break-after: avoid; } figure, .tiles { break-inside: avoid; } }
"""


def facts_table(facts: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><td>{escape(title_of(k))}</td><td>{escape(v)}</td></tr>'
        for k, v in facts.items() if v not in (None, '')]
    return f"<table class='facts'>{''.join(rows)}</table>"


def picture(images: Mapping[str, bytes], name: str, caption: str) -> str:
    if name not in images:
        return ''
    data = base64.b64encode(images[name]).decode()
    note = f'<figcaption>{caption}</figcaption>' if caption else ''
    width = int.from_bytes(images[name][16:20], 'big') * 106 // DPI  # the width stands in the PNG header
    alt = escape(title_of(name))
    return f"<figure><img style='width:{width}px' alt='{alt}' src='data:image/png;base64,{data}'>{note}</figure>"


def page(title: str, body: str) -> str:
    footer = (
        'Accuracies and ECE in percent. A split is the mean over its classes; a split without a class or without a '
        'test image is absent, not 0. Made by timm_lt.evaluate.')
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
    return (
        f"<!doctype html><html lang='en'><head>{head}<style>{CSS}</style></head>"
        f'<body>{body}<footer>{footer}</footer></body></html>\n')


def to_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    import matplotlib
    with matplotlib.rc_context(_style.STYLE):
        figure.savefig(buffer, format='png', dpi=DPI)
    return buffer.getvalue()


def parameters_of(count: int | None) -> str | None:
    return None if count is None else f'{count / 1e6:.2f} M parameters'


def title_of(key: Any) -> str:
    return str(key).replace('_', ' ')


def escape(value: Any) -> str:
    """Any value as escaped text."""
    return '' if value is None else html.escape(printable(value))


def p_value(value: float) -> str:
    return '&lt; 0.0001' if value < 1e-4 else f'= {value:.2g}'


def protocol_of(m: Mapping[str, Any]) -> dict[str, Any]:
    absent = [n for n in SPLIT_NAMES if m.get(n) is None]
    facts = {
        'network': m.get('model'),
        'parameters': None if m.get('num_parameters') is None else f"{m['num_parameters']:,}",
        'seed': m.get('seed'), 'split_rule': m['split_rule'],
        'splits': '; '.join(
            f"{n}: {_style.classes_text(s['classes'])}, {s['images']} test images" for n, s in m['splits'].items()),
        'absent_splits': ', '.join(absent) or None,
        'training_images': f"{sum(m['train_images_per_class']):,}, largest class {max(m['train_images_per_class'])}, "
                           f"smallest {min(m['train_images_per_class'])}",
        'post_hoc': m.get('posthoc') or 'none',
        'transductive': 'yes' if m.get('transductive') else 'no',
    }
    if corrected := m.get('corrected'):
        facts['post_hoc'] = 'none in the main figures; those with the correction stand apart'
        facts['correction'] = f"{corrected['label']}, fitted on {corrected['fitted_on']}"
    protocol = m.get('protocol')
    facts.update(protocol if isinstance(protocol, Mapping) else {'protocol': protocol})
    if isinstance(facts.get('reported_epoch'), int):  # files count from 0, readers from 1
        facts['reported_epoch'] += 1
    for key, form in (('wall_seconds', '{:.1f}'), ('images_per_second', '{:.1f}')):
        if m.get(key) is not None:
            facts[key] = form.format(m[key])
    return facts
