"""Facts and rules under which metrics were measured, in the words of a page."""

from collections.abc import Mapping
from typing import Any

from ..._protocol import PROTOCOL_URL, protocol_text
from ...class_distribution import SPLIT_NAMES
from .html import escape
from .plots.style import classes_text


def protocol_of(m: Mapping[str, Any]) -> dict[str, Any]:
    """Network, data, split rule and choices behind the metrics of a ``metrics.json``."""
    absent = [n for n in SPLIT_NAMES if m.get(n) is None]
    facts = {
        'network': m.get('model'),
        'parameters': None if m.get('num_parameters') is None else f"{m['num_parameters']:,}",
        'dataset': m.get('dataset'),
        'seed': m.get('seed'), 'split_rule': m['split_rule'],
        'splits': '; '.join(
            f"{n}: {classes_text(s['classes'])}, {s['images']} test images" for n, s in m['splits'].items()),
        'absent_splits': ', '.join(absent) or None,
        'training_images': f"{sum(m['train_images_per_class']):,}, largest class {max(m['train_images_per_class'])}, "
                           f"smallest {min(m['train_images_per_class'])}",
        'post_hoc': m.get('posthoc') or 'none',
        'transductive': 'yes' if m.get('transductive') else 'no',
    }
    if corrected := m.get('corrected'):
        facts['post_hoc'] = 'none in the main metrics; a second table shows the metrics with the correction'
        facts['correction'] = f"{corrected['label']}, fitted on {corrected['fitted_on']}"
    protocol = m.get('protocol')
    facts.update(protocol if isinstance(protocol, Mapping) else {'protocol': protocol})
    if isinstance(facts.get('reported_epoch'), int):  # files count from 0, readers from 1
        facts['reported_epoch'] += 1
    if facts.get('precision') == 'no':  # accelerate's word
        facts['precision'] = 'float32'
    for key in ('wall_seconds', 'images_per_second'):
        if m.get(key) is not None:
            facts[key] = f'{m[key]:.1f}'
    return facts


def dataset_of(m: Mapping[str, Any]) -> str | None:
    """Name of the data that the metrics are of."""
    protocol = m.get('protocol')
    return (protocol.get('dataset') if isinstance(protocol, Mapping) else None) or m.get('dataset')


def parameters_of(count: int | None) -> str | None:
    return None if count is None else f'{count / 1e6:.2f} M parameters'


def protocol_link(text: str) -> str:
    """HTML of a link to the rules: the documentation's page where it has an address, else :func:`rules` below."""
    return f"<a href='{escape(PROTOCOL_URL or '#rules')}'>{text}</a>"


def rules() -> str:
    """HTML of the rules, folded away; empty where the documentation has an address."""
    if PROTOCOL_URL:
        return ''
    from markdown import markdown
    text = protocol_text().partition('\n')[2]  # below the title
    shown = markdown(text, extensions=['tables', 'toc'], extension_configs={'toc': {'baselevel': 2}})
    shown = shown.replace('<table>', "<div class='scroll'><table>").replace('</table>', '</table></div>')
    return f"<details class='rules'><summary>Rules of the protocol</summary><div id='rules'>{shown}</div></details>"
