"""Names of classes, runs and data sets that a plotting library, a file or a terminal could misread."""

import csv
import json
import re

import numpy as np
import pytest
import torch
import yaml
from matplotlib.text import Text
from report_cases import coarse_pictures  # noqa: F401

from timm_lt import ClassDistribution
from timm_lt.evaluate import report, write_comparison, write_report
from timm_lt.evaluate.reports import plots
from timm_lt.hub.card import write_card

COUNTS = [300, 150, 60, 30, 12, 5]
NAMES = {
    'mathtext': ['US$_$x', '$\\frac$', '$$', 'a\\$b', '^{', '_hidden'],
    'surrogates': ['Gr\udcf6\udcdfe', '\ud800', 'b\udcff', 'c', 'd', 'e'],
    'scripts': ['猫', 'собака', 'عصفور', '🦊', 'อูล', 'é' * 300],
    'markup': ['<b>a</b>', '</td>', '&amp;', '"', "'><script>", '{{x}}'],
    'white space': ['a\nb', '\t', ' ', '', 'a\0b', '\x1b[31m'],
}


@pytest.fixture
def figures():
    targets = torch.arange(6).repeat(10)
    logits = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(60), targets] += 1.0
    return logits, targets, report(logits, targets, COUNTS)


def write_run(folder, names, logits, targets):
    folder.mkdir()
    result = report(logits, targets, COUNTS, class_names=names)
    result |= {'seed': 0, 'model': 'tiny', 'num_parameters': 5, 'protocol': {'dataset': names[0]}}
    (folder / 'metrics.json').write_text(json.dumps(result))
    np.savez(folder / 'predictions.npz', logits=logits.numpy(), targets=targets.numpy())
    ClassDistribution(COUNTS, names).to_json(folder / 'class_distribution.json')
    (folder / 'args.yaml').write_text(yaml.safe_dump({'model': 'tiny', 'loss': 'ce', 'seed': 0, 'posthoc': None}))
    with open(folder / 'summary.csv', 'w', newline='') as f:
        csv.writer(f).writerows([['epoch', 'train_loss', 'train_top1'], [0, 2.0, 10.0], [1, 1.0, 40.0]])
    return folder


@pytest.mark.parametrize('names', NAMES.values(), ids=NAMES)
@pytest.mark.filterwarnings('ignore:Glyph')
def test_any_name_is_drawn_and_written(names, figures, tmp_path):
    logits, targets, _ = figures
    run = write_run(tmp_path / 'run', names, logits, targets)
    page = write_report(run).read_text(encoding='utf-8')
    assert (run / 'plots' / 'per_class.png').stat().st_size > 1000
    assert not re.search('[\ud800-\udfff]', page) and '\ufffd' in page or names not in (
        NAMES['surrogates'], NAMES['white space'])
    assert '<script>\'' not in page and "'><script>" not in page
    write_comparison([run, run], tmp_path / 'c.html', bootstrap=5)
    recipe = yaml.safe_load((run / 'args.yaml').read_text()) | {'hub': {'dataset_name': names[0]}}
    write_card(run, recipe, json.loads((run / 'metrics.json').read_text()), ClassDistribution(COUNTS, names))
    (run / 'README.md').read_text(encoding='utf-8')


@pytest.mark.filterwarnings('ignore:Glyph')
def test_no_text_of_any_plot_is_read_as_a_formula(figures):
    logits, targets, result = figures
    names = NAMES['mathtext']
    rows = [{'epoch': float(e), 'train_top1': 10.0 * e, 'train_loss': 1.0} for e in range(3)]
    line = {'steps': [-1, 0, 1], 'loss': {'many': [200.0, 0.1, 3.0]}}
    for figure in (
            plots.per_class_bars(result, names), plots.accuracy_by_class_size([result, result], names),
            plots.split_bars([result] * 6, names), plots.compare_curves([rows] * 6, names), plots.training_curves(rows),
            plots.reliability(logits, targets, COUNTS), plots.weight_norms(torch.rand(6, 2), COUNTS),
            plots.landscape_lines(line)):
        texts = [t for t in figure.findobj(Text) if t.get_text()]
        assert texts and not any(t.get_parse_math() for t in texts)
    shown = [t.get_text() for t in plots.per_class_bars(result, names).axes[1].get_xticklabels()]
    assert shown == names


def test_names_that_begin_with_an_underscore_stay_in_the_legend(figures):
    *_, result = figures
    legend = plots.split_bars([result, result], ['_a', 'b']).legends[0]
    assert [t.get_text().strip() for t in legend.get_texts()] == ['_a', 'b']


def test_the_card_shows_dollars_and_bars_of_a_data_set_as_they_are(figures, tmp_path):
    *_, result = figures
    recipe = {'model': 'tiny', 'loss': 'ce', 'posthoc': None, 'hub': {'dataset_name': 'US$_$x | *y*'}}
    write_card(tmp_path, recipe, result, ClassDistribution(COUNTS))
    title = next(line for line in (tmp_path / 'README.md').read_text().splitlines() if line.startswith('# '))
    assert 'US\\$_\\$x \\| \\*y\\*' in title
