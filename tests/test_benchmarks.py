"""The benchmarks' own arithmetic, and that what they start is what the script understands."""

import json
import sys
from argparse import Namespace

import _steps
import accuracy
import cost
import finetune
import pytest
import torch

from timm_lt.optim import BatchClosure
from timm_lt.training import parse_args
from timm_lt.training.options import check_names


def arguments(tmp_path, **options):
    return Namespace(**{
        'protocol': 'quick', 'recipes': 'cifar10_lt', 'methods': list(accuracy.METHODS), 'ratios': [100.0],
        'seeds': [0], 'epochs': None, 'split_rule': 'thirds', 'dataset': 'timm_lt/digits', 'output': tmp_path,
        'extra': [], **options})


@pytest.mark.parametrize('protocol', ['quick', 'paper'])
def test_the_script_understands_every_run_that_is_planned(tmp_path, protocol):
    methods = [m for m, v in accuracy.METHODS.items() if protocol == 'quick' or v.recipe]
    runs = accuracy.plan(arguments(tmp_path, protocol=protocol, methods=methods))
    assert [run.method for run in runs] == methods
    for run in runs:
        args = parse_args(run.options)
        check_names(args)
        assert (args.run.seed, args.data.imbalance_ratio) == (0, 100)
        assert args.schedule.epochs == (0 if protocol == 'quick' and accuracy.METHODS[run.method].after else
                                        20 if protocol == 'quick' else
                                        400 if run.method in ('adrw_tla', 'balpoe') else 200)


def test_a_method_that_starts_on_another_needs_it_in_the_plan(tmp_path):
    with pytest.raises(SystemExit, match='crt starts on ce'):
        accuracy.plan(arguments(tmp_path, methods=['crt']))


def test_variants_are_run_only_where_they_are_named(tmp_path):
    every = accuracy.methods_of(arguments(tmp_path, methods=None))
    named = accuracy.methods_of(arguments(tmp_path, methods=['balanced_softmax', 'variants', 'gsa_g2']))
    assert named[0] == 'balanced_softmax' and 'gsa_g2' not in every and 'gsa' not in named
    assert sorted([*every, *named[1:]]) == sorted(accuracy.METHODS)


def test_differences_are_paired_by_seed_with_a_t_interval():
    mean, half = accuracy.paired({0: 12.0, 1: 25.0, 2: 31.0, 7: 99.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    # differences 2, 5, 1: mean 8/3, deviation 2.0817, t(0.975, 2) = 4.3027
    assert mean == pytest.approx(8 / 3) and half == pytest.approx(4.3027 * 2.0817 / 3 ** 0.5, rel=1e-4)
    assert accuracy.paired({0: 1.0}, {0: 1.0}) is None


def test_the_table_holds_every_stage_and_the_published_figure(tmp_path):
    def figures(top1):
        return {'top1': top1, 'many': top1, 'medium': None, 'few': 1.0}
    rows = {(100.0, 'ce'): {0: figures(30.0), 1: figures(32.0)},
            (100.0, 'ccsam, stage 2'): {0: figures(34.0), 1: figures(36.5)}}
    text = accuracy.table(rows, arguments(tmp_path))
    assert '| `ce` | 2 | 31.0 ± 1.4 | 31.0 ± 1.4 | absent | 1.0 ± 0.0 |  | 70.4 |' in text
    assert '| `ccsam, stage 2` | 2 | 35.2 ± 1.8 |' in text and '+4.2 [+1.1, +7.4] | 83.92 |' in text
    accuracy.plot(rows, arguments(tmp_path))
    assert (tmp_path / 'results_r100.png').is_file()


def test_recipes_of_another_data_set_are_found_or_absent():
    assert accuracy.recipe_of('gala', 'cifar100_lt').name == 'cifar100_lt-gala.yaml'
    assert accuracy.recipe_of('ours', 'cifar100_lt') is None and accuracy.recipe_of('focal', 'cifar10_lt') is None
    assert accuracy.published('ours', 100.0, 'cifar100_lt') is None and accuracy.published('ce', 100.0, 'none') is None


def small_problem():
    torch.manual_seed(0)
    model = _steps.network('resnet20_cifar', 10, torch.device('cpu'), 'group').double()
    counts = _steps.class_counts(10)
    return model, torch.randn(12, 3, 32, 32).double(), _steps.head_and_tail(counts, 12, 20), counts


def test_plain_loops_compute_what_the_optimizers_do():
    import timm
    model, x, y, counts = small_problem()
    part = [int(n < 20) for n in counts]
    _steps.plain_parts_step(model, x, y, part, [0.05, 0.1])()
    plain = [p.grad.clone() for p in model.parameters()]
    optimizer = timm.optim.create_optimizer_v2(
        model, 'ssesam', lr=0.0, class_counts=counts, eta=20, rho_head=0.05, rho_tail=0.1)
    optimizer.compute_grads(BatchClosure(model, torch.nn.CrossEntropyLoss(), x, y))
    for a, p in zip(plain, model.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-6, atol=1e-9)


def test_the_loop_over_classes_computes_what_the_closed_form_does():
    import timm
    torch.manual_seed(0)
    head, features = _steps.HeadOnly(8, 5), torch.randn(20, 8)
    counts, y = [50, 20, 10, 5, 2], torch.arange(5).repeat(4)
    _steps.looped_ccsam_loss(head.fc, features, y, counts, scale=1.0).backward()
    plain = [p.grad.clone() for p in head.parameters()]
    optimizer = timm.optim.create_optimizer_v2(
        head, 'ccsam', lr=0.0, class_counts=counts, scale=1.0, perturbed_share=0.5, variant='released')
    optimizer.compute_grads(BatchClosure(head, torch.nn.CrossEntropyLoss(), features, y))
    for a, p in zip(plain, head.parameters()):
        torch.testing.assert_close(a, p.grad)


def test_cost_table_holds_ratio_and_memory(tmp_path):
    row = cost.Row('losses', 'a network', 'gala', 1.01, 0.99, 1.03, 12.5, 1.02, 0.5)
    text = cost.markdown([row], 'heading')
    assert text.startswith('heading\n') and '| gala | 1.010 | 0.990 to 1.030 | 12.50 | 1.02 | +0.50 |' in text


def test_a_report_on_finished_runs_counts_only_runs_that_it_made(tmp_path, monkeypatch, capsys):
    metrics = {'top1': 30.0, 'many': 50.0, 'medium': None, 'few': 1.0, 'ece': 5.0, 'wall_seconds': 2.0}
    (tmp_path / 'ce_r100_s0').mkdir()
    (tmp_path / 'ce_r100_s0' / 'metrics.json').write_text(json.dumps(metrics))
    monkeypatch.setattr(accuracy.subprocess, 'call', lambda *_, **__: 0)
    monkeypatch.setattr(sys, 'argv', [
        'accuracy.py', '--dataset', 'timm_lt/digits', '--methods', 'ce', 'gala', '--seeds', '0', '--finished',
        '--output', str(tmp_path)])
    assert accuracy.main() == 0
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['this command']['runs'] == 0 and '0 of 2 runs made' in capsys.readouterr().out
    assert [row['row'] for row in results['rows']] == ['ce']


def test_the_fine_tuning_benchmark_plans_runs_that_the_script_understands(tmp_path):
    args = finetune.parse(['--pretrain', 'a', '--tune', 'timm_lt/digits', '--output', str(tmp_path),
                           '--images-per-class', '20'])
    for network in finetune.NETWORKS:
        for name in finetune.TUNINGS:
            options = parse_args(list(finetune.tuning(args, network, name, 'ce', 1).options))
            check_names(options)
            assert (options.run.seed, options.data.imbalance_ratio, options.data.images_per_class) == (1, 100, 20)
            assert options.model.pretrained == (name != 'scratch')
        check_names(parse_args(list(finetune.pretraining(args, network).options)))
    runs = [{'top1': 40.0, 'many': 50.0, 'medium': 30.0, 'few': None, 'num_tuned_parameters': 1234,
             'num_parameters': 5678, 'wall_seconds': 3.0, 'peak_mebibytes': 700.0}]
    row = finetune.table({('vit', 'lora', 'ce'): [runs[0], {**runs[0], 'top1': 42.0}]}).splitlines()[-1]
    assert row == '| vit | lora | ce | 2 | 41.0 ± 1.4 | 50.0 ± 0.0 | 30.0 ± 0.0 | absent | 1,234 | 3 | 700 |'
