import csv
import json
import re
from base64 import b64decode
from html import unescape
from io import BytesIO

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from report_cases import coarse_pictures  # noqa: F401

from timm_lt import ClassDistribution
from timm_lt._protocol import protocol_text
from timm_lt.evaluate import report, write_comparison, write_report
from timm_lt.evaluate.cli import main
from timm_lt.evaluate.reports import load_run, plots, protocol, read_summary, write_mistakes
from timm_lt.evaluate.reports.classes import confusion_counts
from timm_lt.evaluate.reports.comparison import compare_groups
from timm_lt.evaluate.reports.comparison_page import comparison_page
from timm_lt.evaluate.reports.plots import style
from timm_lt.evaluate.reports.runs import group_runs

COUNTS = [300, 150, 60, 30, 12, 5]
NAMES = ['cat', 'dog', '<b>bird</b>', 'fox', 'owl', 'elk']


def write_run(folder, seed=0, loss='ce', gain=0.0, counts=COUNTS, files=True):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(6).repeat(40)
    logits = torch.randn(240, 6, generator=generator)
    logits[torch.arange(240), targets] += 1.2 + gain * (targets >= 4)
    result = report(logits, targets, counts, class_names=NAMES, bootstrap=50)
    result.update(seed=seed, model='tiny', num_parameters=1234567, protocol={'epoch': 'last', 'chosen_by': 'nothing'})
    (folder / 'metrics.json').write_text(json.dumps(result))
    if not files:
        return folder
    np.savez(folder / 'predictions.npz', logits=logits.half().numpy(), targets=targets.numpy())
    ClassDistribution(counts, NAMES).to_json(folder / 'class_distribution.json')
    (folder / 'args.yaml').write_text(yaml.safe_dump({'loss': loss, 'seed': seed, 'experiment': folder.name}))
    with open(folder / 'summary.csv', 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['epoch', 'train_loss', 'lr', 'top1', 'many', 'medium', 'few'])
        writer.writerows([[0, 2.0, 0.1, '', '', '', ''], [1, 1.0, 0.05, 40.0, 60.0, 40.0, 20.0]])
    return folder


def pictures(page):
    return [b64decode(data).decode() for data in re.findall(r"src='data:image/svg\+xml;base64,([^']+)", page)]


def test_page_of_a_run_is_self_contained_and_names_the_protocol(tmp_path):
    run = write_run(tmp_path / 'run')
    path = write_report(run)
    page = path.read_text()
    assert path == run / 'report.html'
    assert not re.search(r'(src|href|srcset)=[\'"](?!data:|#)', page) and '@import' not in page and 'http' not in page
    for fact in ('gt100_lt20', '1,234,567', 'chosen by', 'nothing', 'transductive', 'seed'):
        assert fact in page
    assert '&lt;b&gt;bird&lt;/b&gt;' in page and '<b>bird' not in page
    result = json.loads((run / 'metrics.json').read_text())
    for key in ('top1', 'many', 'medium', 'few', 'ece'):
        assert f'<b>{result[key]:.1f}</b>' in page
    assert len(pictures(page)) == 4
    found = {p.stem for p in (run / 'plots').glob('*.png')}
    assert found == {'accuracy_by_class_size', 'per_class', 'split_confusion', 'reliability', 'training_curves'}


def test_pages_hold_the_rules_of_the_protocol_and_link_to_them(tmp_path, monkeypatch):
    run = write_run(tmp_path / 'run')
    pages = [write_report(run), write_comparison([run], tmp_path / 'comparison.html', bootstrap=10)]
    for page in (path.read_text() for path in pages):
        assert page.count("<a href='#rules'>protocol</a>") == page.count("id='rules'") == 1
        shown = re.search(r"<div id='rules'>(.*?)</div></details>", page, re.DOTALL)[1]
        rules = unescape(re.sub(r'<[^>]+>|\s', '', shown))
        source = protocol_text().partition('\n')[2]
        words = re.sub(r'^\|[ |-]*$|[`*|#\s]|^- ', '', source, flags=re.MULTILINE)
        assert re.sub(r'[`*|#]', '', rules) == words
    monkeypatch.setattr(protocol, 'PROTOCOL_URL', 'https://docs.example/protocol.html')
    body = write_report(run).read_text().split('</style>')[1]
    assert "<a href='https://docs.example/protocol.html'>protocol</a>" in body and 'rules' not in body


def test_page_shows_what_the_run_has(tmp_path):
    run = write_run(tmp_path / 'run', files=False)
    result = json.loads((run / 'metrics.json').read_text())
    steps = [-1.0, 0.0, 1.0]
    result['weight_norms'] = [3.0, 2.0, 2.0, 1.0, 1.0, 0.5]
    result['landscape'] = {
        'rho': 0.05, 'top_eigenvalue': {'many': 1.5, 'few': None},
        'line': {'steps': steps, 'loss': {'many': [2, 1, 2]}},
        'surface': {'steps': steps, 'loss': {'many': [[2, 1, 2]] * 3, 'few': [[3, 2, 3]] * 3}},
    }
    result['open_set'] = {
        'score': 'energy', 'f_measure_oltr': 0.512, 'f_measure_without_rejected': 0.6, 'auroc': None, 'fpr95': 1.0,
        'oscr': 2.0, 'threshold': 0.5, 'threshold_rule': 'fixed beforehand', 'num_known': 3, 'num_unknown': 2}
    (run / 'metrics.json').write_text(json.dumps(result))
    page = write_report(run).read_text()
    assert len(pictures(page)) == 5
    for text in ('Loss landscape', 'top eigenvalue', 'Open set', '0.512', 'fixed beforehand'):
        assert text in page
    assert 'Calibration' not in page and 'Training<' not in page


def test_absent_split_is_written_as_absent(tmp_path):
    page = write_report(write_run(tmp_path / 'run', counts=[300] * 6)).read_text()
    assert "<b class='absent'>absent</b>" in page and 'absent splits' in page


def test_transductive_figures_are_labelled(tmp_path):
    run = write_run(tmp_path / 'run')
    result = json.loads((run / 'metrics.json').read_text())
    (run / 'metrics.json').write_text(json.dumps({**result, 'transductive': True, 'posthoc': 'rebalance(tau=1)'}))
    assert 'Transductive.' in write_report(run).read_text()


def test_folder_without_metrics_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no metrics.json'):
        load_run(tmp_path)
    run = write_run(tmp_path / 'run')
    (run / 'metrics.json').write_text('{')
    with pytest.raises(ValueError, match='run cannot be read'):
        load_run(run)
    (run / 'metrics.json').write_text('{"top1": 3}')
    with pytest.raises(ValueError, match="lacks .*'per_class'.*'num_images', 'num_classes'"):
        load_run(run)
    (run / 'metrics.json').write_text('3')
    with pytest.raises(ValueError, match="lacks .*'per_class'"):
        load_run(run)


def test_seeds_of_one_recipe_are_merged_and_recipes_named_by_what_differs(tmp_path):
    runs = [write_run(tmp_path / f'r{k}', seed=k, loss=loss) for k, loss in enumerate(('ce', 'bs', 'ce', 'bs'))]
    groups = group_runs([load_run(r) for r in runs])
    assert [(g['name'], len(g['runs'])) for g in groups] == [('loss ce', 2), ('loss bs', 2)]
    top1 = [r['metrics']['top1'] for r in groups[0]['runs']]
    assert groups[0]['merged']['mean']['top1'] == pytest.approx(np.mean(top1))


def test_one_run_given_twice_is_not_taken_for_two_seeds(tmp_path):
    run = load_run(write_run(tmp_path / 'run'))
    assert [len(g['runs']) for g in group_runs([run, run])] == [1, 1]


def change_run(folder, metrics=None, args=None):
    for name, values, read, write in (
            ('metrics.json', metrics, json.loads, json.dumps), ('args.yaml', args, yaml.safe_load, yaml.safe_dump)):
        path = folder / name
        path.write_text(write({**read(path.read_text()), **(values or {})}))
    return folder


CORRECTED = {
    'label': 'rebalance, tau 1, transductive', 'posthoc': 'rebalance, tau 1, transductive', 'transductive': True,
    'fitted_on': 'the test images themselves', 'top1': 61.25, 'top5': 99.0, 'balanced_accuracy': 51.5, 'many': 70.0,
    'medium': 60.0, 'few': 41.75, 'per_class': [70.0, 70.0, 60.0, 60.0, 50.0, 33.5], 'ece': 4.0}


@pytest.mark.parametrize('metrics', [
    {'posthoc': 'rebalance, tau 1, inductive'}, {'transductive': True}, {'num_images': 50}, {'split_rule': 'thirds'},
    {'protocol': {'test_part': "split 'val'"}}, {'protocol': {'dataset': 'other'}},
    {'train_images_per_class': [300, 150, 60, 30, 12, 4]}])
def test_runs_that_were_measured_differently_are_not_merged(metrics, tmp_path):
    runs = [write_run(tmp_path / 'a'), change_run(write_run(tmp_path / 'b', seed=1), metrics)]
    assert [len(g['runs']) for g in group_runs([load_run(r) for r in runs])] == [1, 1]


def test_runs_that_differ_only_in_how_they_were_carried_out_are_merged(tmp_path):
    args = {'push_to_hub': 'me/b', 'log_with': 'tensorboard', 'checkpoint_every': 5, 'revision': 'b', 'quiet': True,
            'hub': {'title': 'b'}, 'private': True}
    runs = [write_run(tmp_path / 'a'), change_run(write_run(tmp_path / 'b', seed=1), args=args)]
    assert [len(g['runs']) for g in group_runs([load_run(r) for r in runs])] == [2]


def test_page_shows_the_figures_with_the_correction_and_labels_them(tmp_path):
    run = change_run(write_run(tmp_path / 'run'), {'corrected': CORRECTED, 'protocol': {'reported_epoch': 0}})
    page = write_report(run).read_text()
    for text in ('61.25', '41.75', 'rebalance, tau 1, transductive', 'Fitted on the test images themselves',
                 '<b>Transductive.</b>', '<td>reported epoch</td><td>1</td>'):
        assert text in page, text


def test_comparison_shows_the_figures_with_the_correction(tmp_path):
    runs = [change_run(write_run(tmp_path / f'a{k}', seed=k), {'corrected': {**CORRECTED, 'top1': 61.0 + k}})
            for k in range(2)]
    page = write_comparison([*runs, write_run(tmp_path / 'b', loss='bs')], tmp_path / 'c.html', bootstrap=20)
    page = page.read_text()
    assert 'with rebalance, tau 1, transductive' in page
    assert '<td>61.50<small>± 0.71</small></td>' in page and '<td>33.50<small>± 0.00</small></td>' in page


def test_comparison_of_transductive_and_inductive_figures_says_so(tmp_path):
    metrics = {'transductive': True, 'posthoc': 'rebalance, tau 1, transductive'}
    runs = [write_run(tmp_path / 'a'), change_run(write_run(tmp_path / 'b', loss='bs'), metrics)]
    page = write_comparison(runs, tmp_path / 'c.html', bootstrap=20).read_text()
    assert 'The metrics of loss bs are transductive' in page


def test_page_shows_the_means_macro_f1_and_calibration_by_split(tmp_path):
    run = write_run(tmp_path / 'run')
    result = json.loads((run / 'metrics.json').read_text())
    page = write_report(run).read_text()
    for key in ('harmonic_mean', 'geometric_mean', 'macro_f1', 'ece_many', 'ece_medium', 'ece_few'):
        assert f'<td>{result[key]:.2f}</td>' in page, key


def test_comparison_marks_the_split_that_gained_and_only_it(tmp_path):
    runs = [write_run(tmp_path / 'a', loss='ce'), write_run(tmp_path / 'b', loss='bs', gain=2.0)]
    page = write_comparison(runs, tmp_path / 'comparison.html', bootstrap=500).read_text()
    row = next(r for r in page.split('<tr>') if r.startswith('<td>loss bs'))
    cells = re.findall(r'<td.*?</td>', row)
    assert '<sup>***</sup>' not in cells[4] and '<sup>' not in cells[4] and '<sup>**' in cells[6]
    assert 'McNemar' in page and 'paired bootstrap' in page and 'not comparable' not in page
    assert len(pictures(page)) == 3


def test_comparison_over_seeds_uses_the_seeds(tmp_path):
    runs = [write_run(tmp_path / f'{loss}{k}', seed=k, loss=loss, gain=g)
            for loss, g in (('ce', 0.0), ('bs', 2.0)) for k in range(3)]
    page = comparison_page(compare_groups(group_runs([load_run(r) for r in runs])))
    assert 'Welch' in page and 'paired bootstrap over' not in page and '±' in page


def test_comparison_warns_of_runs_that_are_not_comparable(tmp_path):
    runs = [write_run(tmp_path / 'a'), write_run(tmp_path / 'b', loss='bs', counts=[300, 150, 60, 30, 12, 4])]
    page = comparison_page(compare_groups(group_runs([load_run(r) for r in runs]), bootstrap=20))
    assert 'differ in training class sizes: their metrics are not comparable' in page


def test_summary_rows_hold_numbers_or_none(tmp_path):
    rows = read_summary(write_run(tmp_path / 'run') / 'summary.csv')
    assert rows[0] == {'epoch': 0, 'train_loss': 2, 'lr': 0.1, 'top1': None, 'many': None, 'medium': None, 'few': None}


def test_page_of_a_gkp_run_draws_its_inner_life(tmp_path):
    run = write_run(tmp_path / 'run')
    figures = {'alpha': [0.95, 0.6], 'penalty': [0.0, 2.5], 'radii': ['0.1/-/0', '0.2'],
               'group_images': ['250/30/4', 99], 'bank_epochs': [1, 2], 'grouped_by': ['size', 'bank'],
               'quality_few': [1.0, 2.0],
               'quality_medium': ['', ''], 'gradient_similarity_few': [-0.5, 0.5]}
    with open(run / 'summary.csv', 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['epoch', *figures])
        writer.writerows([epoch, *(column[epoch] for column in figures.values())] for epoch in range(2))
    rows = read_summary(run / 'summary.csv')
    assert rows[0]['radii'] == [0.1, None, 0.0] and rows[1]['radii'] == 0.2 and rows[0]['grouped_by'] is None
    write_report(run)
    assert (run / 'plots' / 'gkp_inner_life.png').is_file()
    panels = plots.gkp_inner_life(rows).axes
    lines = {axes.get_title(loc='left'): [list(line.get_ydata()) for line in axes.lines] for axes in panels}
    assert lines['Radius of each group, last step'] == [[0.1, 0.2], [], []]
    assert lines['Training images of each group'] == [[250, 99], [30], [4]]
    assert lines['Feature quality'] == [[], [], [1, 2]]


@pytest.mark.parametrize('counts', [[1] * 6, [0, 1, 2, 3, 4, 200]])
def test_every_plot_draws_for_any_class_sizes(counts, tmp_path):
    targets = torch.arange(5).repeat(4)  # the last class is not tested
    logits = torch.randn(20, 6)
    logits[0] = torch.nan
    result = report(logits, targets, counts)
    for figure in (
            plots.accuracy_by_class_size(result), plots.accuracy_by_class_size([result, result], ['a', 'b']),
            plots.per_class_bars(result), plots.split_confusion(result), plots.reliability(logits, targets, counts),
            plots.weight_norms(torch.randn(6, 3), counts), plots.split_bars([result], ['a']),
            plots.training_curves([]), plots.training_curves([{'epoch': 0.0, 'train_loss': 1.0, 'top1': 3.0}]),
            plots.compare_curves([[], []], ['a', 'b']),
            plots.landscape_lines({'steps': [-1, 0, 1], 'loss': {'many': [2.0, 0.0, None], 'few': [None, 1.0, 2.0]}}),
            plots.landscape_surfaces({'steps': [-1, 1], 'loss': {'few': [[None, 1.0], [0.0, 2.0]]}}),
    ):
        path = style.save(figure, tmp_path / 'figure.png', dpi=40)
        assert Image.open(path).size[0] > 100


def test_plots_leave_the_style_of_the_caller_alone():
    import matplotlib
    before = dict(matplotlib.rcParams)
    plots.split_confusion(report(torch.eye(6), torch.arange(6), COUNTS))
    assert dict(matplotlib.rcParams) == before


def test_split_colors_keep_their_order_in_grey():
    from matplotlib.colors import to_rgb
    grey = [np.dot(to_rgb(style.SPLIT_COLORS[n]), (0.299, 0.587, 0.114)) for n in ('many', 'medium', 'few')]
    assert grey[1] - grey[0] > 0.2 and grey[2] - grey[1] > 0.15


@pytest.mark.parametrize('prefix', ['train_', 'val_'])
def test_curves_show_the_columns_that_the_training_script_writes(prefix):
    rows = [{'epoch': float(e), f'{prefix}top1': 10.0 * e, f'{prefix}many': 20.0 * e} for e in range(3)]
    accuracy = plots.training_curves(rows).axes[1]
    assert [list(line.get_ydata()) for line in accuracy.lines[:2]] == [[0, 10, 20], [0, 20, 40]]
    assert len(plots.compare_curves([rows, rows], ['a', 'b']).axes[0].lines) == 2


def test_a_comparison_grows_with_the_names_of_its_runs(tmp_path, recwarn):
    rows = [{'epoch': float(e), 'train_top1': 10.0 * e} for e in range(3)]
    heights = []
    for names in (['a', 'b'], [f'method number {k}' for k in range(27)]):
        figure = plots.compare_curves([rows] * len(names), names)
        style.save(figure, tmp_path / 'figure.png', dpi=40)
        heights.append(figure.get_size_inches()[1])
    # constrained layout warns where the axes have no room left
    assert heights[1] > heights[0] + 0.5 and not recwarn.list


def test_comparison_shows_the_curves_that_the_training_script_writes(tmp_path):
    runs = [write_run(tmp_path / 'a'), write_run(tmp_path / 'b', loss='bs')]
    for run in runs:
        text = (run / 'summary.csv').read_text()
        (run / 'summary.csv').write_text(text.replace('top1', 'val_top1').replace('few', 'val_few'))
    page = write_comparison(runs, tmp_path / 'c.html', bootstrap=20).read_text()
    assert '<h2>Training</h2>' in page and len(pictures(page)) == 3


def test_comparison_is_printed_with_its_warnings(tmp_path, capsys):
    runs = [write_run(tmp_path / f'a{k}', seed=k) for k in range(2)]
    runs.append(write_run(tmp_path / 'b', loss='bs', counts=[300, 150, 60, 30, 12, 4]))
    assert main(['compare', *map(str, runs), '--output', str(tmp_path / 'c.html'), '--bootstrap', '20']) == 0
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    mean = np.mean([json.loads((run / 'metrics.json').read_text())['top1'] for run in runs[:2]])
    assert head.split()[:4] == ['recipe', 'seeds', 'top-1', 'balanced']
    assert first.startswith('loss ce') and f'{mean:.2f} ± ' in first and second.startswith('loss bs')
    assert 'warning: The runs differ in training class sizes: their metrics are not comparable.' in rest
    assert rest[-1] == str(tmp_path / 'c.html')


class Coloured:
    """Images whose colour is their number; the transform must not be applied."""

    def __init__(self):
        self.transform = lambda image: 1 / 0

    def __len__(self):
        return 240

    def __getitem__(self, index):
        image = Image.new('RGB', (300, 200), (index, 0, 0))
        return (image if self.transform is None else self.transform(image)), index % 6


def test_mistakes_of_each_split_are_those_with_the_highest_confidence(tmp_path):
    run = write_run(tmp_path / 'run')
    write_mistakes(run, Coloured())
    found = load_run(run)
    probabilities = torch.tensor(found['logits']).float().softmax(1).numpy()
    predicted, targets = probabilities.argmax(1), found['targets']
    for split, classes in (('many', [0, 1]), ('medium', [2, 3]), ('few', [4, 5])):
        wrong = np.flatnonzero(np.isin(targets, classes) & (predicted != targets))
        expected = wrong[np.argsort(-probabilities[wrong].max(1), kind='stable')][:8]
        shown = [m for m in found['mistakes'] if m['split'] == split]
        assert [m['image'] for m in shown] == expected.tolist()
        picture = Image.open(BytesIO(shown[0]['picture']))
        assert picture.size == (160, 107) and abs(picture.getpixel((80, 50))[0] - shown[0]['image']) < 8
    page = write_report(run).read_text()
    assert page.count("src='data:image/jpeg") == len(found['mistakes']) and '<h2>Mistakes</h2>' in page


def test_the_table_of_classes_holds_precision_recall_and_f1(tmp_path):
    run = write_run(tmp_path / 'run')
    result = json.loads((run / 'metrics.json').read_text())
    page = write_report(run).read_text()
    row = next(r for r in page.split('<tr>') if r.startswith('<td>fox'))
    for key in ('per_class', 'precision_per_class', 'f1_per_class'):
        assert f"data-v='{result[key][3]:.4f}'" in row
    saved = b64decode(re.search(r"download='classes.csv' href='data:text/csv;base64,([^']+)", page)[1]).decode()
    rows = {row['class']: row for row in csv.DictReader(saved.splitlines())}
    assert list(rows) == NAMES and float(rows['fox']['F1']) == pytest.approx(result['f1_per_class'][3])
    assert 'type=\'search\'' in page and 'sortable' in page and 'prefers-color-scheme: dark' in page


def test_confusions_of_many_classes_are_listed_largest_first():
    predicted, targets = np.array([1, 1, 2, 0, -1, 1, 2]), np.array([0, 0, 0, 1, 1, 1, 1])
    assert confusion_counts(predicted, targets).tolist() == [[0, 1, 2], [0, 2, 1], [1, 0, 1], [1, 2, 1]]
    assert confusion_counts(targets, targets).tolist() == []


def test_the_matrix_of_few_classes_writes_its_heads_upright(tmp_path):
    page = write_report(write_run(tmp_path / 'run')).read_text()
    assert page.count("<table class='heat names'>") == 1 and page.count("<table class='heat '>") == 1


def test_facts_that_all_recipes_share_are_said_once(tmp_path):
    runs = [write_run(tmp_path / loss, loss=loss) for loss in ('ce', 'ldam')]
    page = write_comparison(runs, tmp_path / 'comparison.html', bootstrap=10).read_text()
    assert page.count('1,234,567') == 1 and "colspan=2><span>tiny</span>" in page


def test_epochs_of_plots_are_counted_from_1():
    rows = [{'epoch': float(e), 'train_loss': 1.0} for e in range(3)]
    assert list(plots.training_curves(rows).axes[0].lines[0].get_xdata()) == [1, 2, 3]


def test_few_classes_get_no_smoothed_curve_and_many_a_mean_that_invents_nothing():
    def lines(num_classes):
        targets = torch.arange(num_classes).repeat(4)
        logits = torch.eye(num_classes)[torch.where(targets % 2 == 0, targets, 0)]
        result = report(logits, targets, [300 - 3 * c for c in range(num_classes)])
        return {line.get_label(): line for line in plots.accuracy_by_class_size(result).axes[0].lines}

    assert 'running mean' not in lines(6)
    mean = lines(40)['running mean'].get_ydata()
    assert 40 < mean.min() and mean.max() < 60


def test_a_narrow_figure_lays_its_panels_below_one_another(tmp_path):
    rows = [{'epoch': float(e), 'train_loss': 1.0, 'train_top1': 5.0} for e in range(3)]
    wide, narrow = (plots.training_curves(rows, narrow=n).get_size_inches() for n in (False, True))
    assert narrow[0] < 4.5 < wide[0] and narrow[1] > wide[1]


def test_names_without_glyphs_are_numbers_in_picture_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, 'has_glyphs', lambda name: name != 'owl')
    run = write_run(tmp_path / 'run')
    from timm_lt.evaluate.reports import run_page
    drawn = []
    monkeypatch.setattr(run_page.plots, 'save', lambda figure, path: drawn.append((path.stem, figure)))
    page = write_report(run).read_text()
    labels = [t.get_text() for t in dict(drawn)['per_class'].axes[1].get_xticklabels()]
    assert labels[4] == 'class 4' and labels[5] == 'elk' and any('owl' in svg for svg in pictures(page))
