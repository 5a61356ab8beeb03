"""HTML page of one run, which a browser opens without any other file."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..._files import write_text
from . import plots, sections
from .classes import class_csv, class_rows, class_table, confusion
from .html import download, escape, facts_table, page, picture
from .mistakes import mistakes_section
from .protocol import dataset_of, parameters_of, protocol_link, protocol_of, rules
from .runs import load_run

CAPTIONS = {
    'accuracy_by_class_size': 'Each mark is a class.',
    'per_class': 'Dashed: mean of the split.',
    'reliability': 'Bars: accuracy of the images of a confidence. Red: gap to the confidence; red above a bar is '
                   'over-confident. ECE in percent, 15 bins.',
    'landscape_surface': 'Red cross: the trained weights.',
    'gkp_inner_life': 'Of the training images only. Groups and penalty begin with the first grouping.',
}
FULL = ('per_class', 'reliability', 'training_curves', 'gkp_inner_life', 'landscape_surface')  # width of the page
FILES = {'metrics.json': 'application/json', 'summary.csv': 'text/csv', 'args.yaml': 'text/plain'}


def run_plots(run: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Functions that draw the plots of a run of :func:`load_run`, by name; each takes ``narrow``."""
    metrics, rule = run['metrics'], run['metrics']['split_rule']
    counts = metrics['train_images_per_class']
    drawn: dict[str, Callable[..., Any]] = {
        'accuracy_by_class_size': partial(plots.accuracy_by_class_size, metrics),
        'per_class': partial(plots.per_class_bars, metrics, run['class_names']),
    }
    if metrics.get('split_confusion'):
        drawn['split_confusion'] = partial(plots.split_confusion, metrics)
    if run['logits'] is not None:
        drawn['reliability'] = partial(plots.reliability, run['logits'], run['targets'], counts, split_rule=rule)
    if metrics.get('weight_norms'):
        drawn['weight_norms'] = partial(plots.weight_norms, metrics['weight_norms'], counts, split_rule=rule)
    if run['summary']:
        drawn['training_curves'] = partial(plots.training_curves, run['summary'])
        if 'bank_epochs' in run['summary'][-1]:
            drawn['gkp_inner_life'] = partial(plots.gkp_inner_life, run['summary'])
    landscape = metrics.get('landscape') or {}
    if landscape.get('line'):
        drawn['landscape_line'] = partial(plots.landscape_lines, landscape['line'])
    if landscape.get('surface'):
        drawn['landscape_surface'] = partial(plots.landscape_surfaces, landscape['surface'])
    return drawn


def write_report(run_dir: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run and its plots.

    Args:
        run_dir: The run folder; plots go to its ``plots/``, as PNG.
        path: The page; None is ``run_dir/report.html``.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: If the folder has no ``metrics.json``.
        ValueError: If a file of the run is damaged.
    """
    run = load_run(run_dir)
    path = Path(run_dir) / 'report.html' if path is None else Path(path)
    for name, draw in run_plots({**run, 'class_names': _drawable(run['class_names'])}).items():
        plots.save(draw(), Path(run_dir) / 'plots' / f'{name}.png')
    write_text(path, run_page(run))
    return path


def run_page(run: Mapping[str, Any]) -> str:
    """HTML of a run of :func:`load_run`."""
    m, drawn = run['metrics'], run_plots(run)

    def shown(name: str) -> str:
        return picture(drawn[name], name, CAPTIONS.get(name, ''), name in FULL) if name in drawn else ''

    lead = [dataset_of(m), m.get('model'), parameters_of(m.get('num_parameters')), f"{m['num_images']} test images",
            f"{m['num_classes']} classes", f"split rule {m['split_rule']}",
            None if m.get('seed') is None else f"seed {m['seed']}"]
    rows = class_rows(m, run['class_names'])
    body = [
        f"<h1>{escape(run['name'])}</h1>"
        f"<p class='lead'>{' · '.join(escape(part) for part in lead if part)} · {protocol_link('protocol')}</p>",
        _files(run, rows), sections.warnings(m), sections.tiles(m), sections.further_metrics(m),
    ]
    if m.get('corrected'):
        body.append('<h2>With the post-hoc correction</h2>' + sections.with_correction(m))
    if m.get('variants'):
        body.append('<h2>Averages</h2>' + sections.variants(m))
    body.append('<h2>Accuracy by class size</h2>')
    body.append(f"<div class='pair'>{shown('accuracy_by_class_size')}{shown('weight_norms')}</div>{shown('per_class')}")
    body.append(f'<h2>Classes</h2>{class_table(rows)}')
    if m.get('split_confusion'):
        body.append('<h2>Confusion</h2>' + sections.split_confusion(m))
    if run['predicted'] is not None:
        body.append(f'<h3>Confusion of classes</h3>{confusion(run)}')
    body.append(mistakes_section(run))
    if 'reliability' in drawn:
        body.append('<h2>Calibration</h2>' + shown('reliability'))
    if m.get('open_set'):
        body.append('<h2>Open set</h2>' + sections.open_set(m['open_set']))
    if m.get('landscape'):
        body.append('<h2>Loss landscape</h2>' + sections.curvature(m['landscape']))
        body.append(f"<div class='pair'>{shown('landscape_line')}</div>{shown('landscape_surface')}")
    if 'training_curves' in drawn:
        body.append('<h2>Training</h2>' + shown('training_curves') + shown('gkp_inner_life'))
    body.append('<h2>Protocol</h2>' + facts_table(protocol_of(m)) + rules())
    if run['args']:
        body.append(f"<details><summary>All options of the run</summary>{facts_table(run['args'])}</details>")
    return page(run['name'], ''.join(body))


def _files(run: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """Links that save the files of the run, which the page holds."""
    links = [download('classes.csv', 'text/csv', class_csv(rows))]
    links += [download(name, kind, (run['path'] / name).read_bytes())
              for name, kind in FILES.items() if (run['path'] / name).is_file()]
    return f"<p class='files'>Download {' '.join(links)}</p>"


def _drawable(names: list[str] | None) -> list[str] | None:
    """Names for a PNG file: a class whose name no installed font can draw is shown by its number."""
    return names and [name if plots.has_glyphs(name) else f'class {c}' for c, name in enumerate(names)]
