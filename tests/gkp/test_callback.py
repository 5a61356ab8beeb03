import importlib
import io
import json
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from gkp_cases import COUNTS, Loader, images, make_gkp, make_trainer

from timm_lt import ClassDistribution
from timm_lt.gkp import (
    GKP,
    GroupPenalty,
    QuadraticPenalty,
    capped_indices,
    encoder_parameters,
    images_per_class,
)
from timm_lt.optim import BatchClosure
from timm_lt.training.pipeline import InputPipeline
from timm_lt.training.trainer import Trainer


def train(trainer, gkp, first, last):
    x, y = images()
    rows = []
    gkp.on_train_start(trainer)
    for epoch in range(first, last):
        trainer.model.train()
        gkp.on_epoch_start(trainer, epoch)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(15):
            trainer.optimizer.step(BatchClosure(trainer.model, nn.CrossEntropyLoss(), x[batch], y[batch]))
        rows.append(gkp.on_epoch_end(trainer, epoch))
    return rows


def test_figures_of_every_epoch_tell_the_inner_life():
    gkp, trainer = make_gkp(), make_trainer()
    rows = train(trainer, gkp, 0, 4)
    assert [row['grouped_by'] for row in rows][:2] == ['size', 'size'] and rows[3]['grouped_by'] in ('bank', 'gradient')
    assert rows[0]['alpha'] == 0.95 and rows[3]['alpha'] < 0.9
    assert rows[1]['penalty'] == 0 and rows[2]['penalty'] > 0
    for row in rows:
        assert sum(int(n) for n in row['group_images'].split('/')) == sum(COUNTS)
        assert len(row['radii'].split('/')) == row['num_groups'] and row['radius_mean'] > 0
        assert row['quality_few'] is not None and row['quality_many'] is None  # no class has more than 100 images
        assert -1 <= row['gradient_similarity_few'] <= 1
    assert torch.equal(trainer.optimizer.groups, gkp.groups)


def test_epoch_end_leaves_weights_buffers_modes_and_generators_alone():
    gkp, trainer = make_gkp(regroup_every=1), make_trainer()
    gkp.on_train_start(trainer)
    gkp.on_epoch_start(trainer, 0)
    trainer.model.train()
    trainer.model.bn.eval()  # a frozen layer stays frozen
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    random_state = torch.get_rng_state()
    gkp.on_epoch_end(trainer, 0)
    assert gkp.penalty is not None
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert trainer.model.training and not trainer.model.bn.training and trainer.model.bn.momentum == 0.1
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize('size', ['samples', 'classes'])
def test_penalty_equals_anchors_and_fishers_taken_one_by_one(size):
    gkp, trainer = make_gkp(group_size=size, limit_curvature=False, fisher_images=6), make_trainer()
    train(trainer, gkp, 0, 4)
    model, groups = trainer.model, gkp.groups
    encoder = encoder_parameters(model)
    assert len(encoder) == 4
    live = {k: v.clone() for k, v in model.state_dict().items()}
    loader = Loader()
    mine = {k: (groups[loader.y] == k).nonzero().flatten()[:6] for k in range(int(groups.max()) + 1)}
    # images of the groups, in the order of the groups, tell BatchNorm its statistics at an anchor
    everything = loader.x[torch.cat(list(mine.values()))]
    fishers, anchors, sizes = [], [], []
    for k, index in mine.items():
        classes = (groups == k).nonzero().flatten()
        anchor = sum(gkp.bank.snapshot(int(gkp.bank.best_epoch[c])) for c in classes) / len(classes)
        with torch.no_grad():
            for p, a in zip(encoder, anchor.split([p.numel() for p in encoder])):
                p.copy_(a.view_as(p))
            model.train()
            hidden = model.conv(everything)
            model.bn.running_mean.copy_(hidden.mean((0, 2, 3)))
            model.bn.running_var.copy_(hidden.var((0, 2, 3)))
        model.eval()
        fisher = [torch.zeros_like(p) for p in encoder]
        for i in index:
            g = torch.autograd.grad(F.cross_entropy(model(loader.x[i:i + 1]), loader.y[i:i + 1]), encoder)
            fisher = [f + d ** 2 / len(index) for f, d in zip(fisher, g)]
        fishers.append(fisher)
        anchors.append([p.detach().clone() for p in encoder])
        sizes.append(len(classes) if size == 'classes' else sum(COUNTS[c] for c in classes))
    model.load_state_dict(live)
    expected = GroupPenalty(encoder, fishers, anchors, sizes).quadratic()
    torch.testing.assert_close(gkp.penalty.value(), expected.value(), rtol=1e-3, atol=0)
    torch.testing.assert_close(gkp.penalty.gradients(), expected.gradients(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('options', [{}, {'on_disk': True}], ids=str)
def test_resume_in_the_middle_is_bit_exact(tmp_path, options):
    options = dict(options)
    own = {'directory': tmp_path} if options.pop('on_disk', False) else {}
    whole, gkp = make_trainer(**options), make_gkp(**own)
    train(whole, gkp, 0, 3)
    file = io.BytesIO()
    torch.save({'model': whole.model.state_dict(), 'opt': whole.optimizer.state_dict(), 'gkp': gkp.state_dict()}, file)
    rows = train(whole, gkp, 3, 6)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed, again = make_trainer(**options), make_gkp(**own)
    resumed.model.load_state_dict(state['model'])
    resumed.optimizer.load_state_dict(state['opt'])
    again.load_state_dict(state['gkp'])
    assert train(resumed, again, 3, 6) == rows
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.equal(a, b)
    assert torch.equal(gkp.groups, again.groups) and torch.equal(gkp.bank.best_epoch, again.bank.best_epoch)
    assert torch.equal(gkp.bank.similarity(), again.bank.similarity())


def test_one_group_has_no_penalty_and_strength_zero_is_gsa_alone():
    gkp, trainer = make_gkp(num_groups=1), make_trainer()
    train(trainer, gkp, 0, 2)
    assert gkp.groups.tolist() == [0] * 6 and gkp.penalty is None
    gkp, trainer = make_gkp(strength=0.0), make_trainer()
    train(trainer, gkp, 0, 3)
    assert gkp.penalty is None and trainer.optimizer.alpha == 1 and gkp.source


def test_regrouping_happens_at_the_named_epochs():
    gkp = make_gkp(regroup_epochs=[1, 5])
    assert [e for e in range(8) if gkp.regroups_after(e)] == [1, 5]
    assert [e for e in range(8) if make_gkp(regroup_every=3).regroups_after(e)] == [2, 5]


def test_limited_curvature_lets_no_step_overshoot():
    gkp, trainer = make_gkp(strength=1e6), make_trainer()
    train(trainer, gkp, 0, 2)
    bound = 1 / (0.4 * 0.05)
    largest = max(float(a.max()) for a in gkp.penalty.curvature)
    assert gkp.limited > 0 and largest == pytest.approx(bound)
    assert isinstance(gkp.penalty, QuadraticPenalty)


def test_images_are_capped_mixed_and_drawn_by_the_seed():
    _, y = images()
    chosen = capped_indices(y, 5)
    assert torch.bincount(y[chosen]).tolist() == [5, 5, 5, 4, 2, 1]
    assert len(set(chosen.tolist())) == len(chosen) and len(set(y[chosen[:8]].tolist())) > 2
    assert torch.equal(chosen, capped_indices(y, 5)) and not torch.equal(chosen, capped_indices(y, 5, seed=1))
    assert images_per_class([500, 300, 100, 20, 5]) == 22  # 22 + 22 + 22 + 20 + 5 = 91 of 925
    assert images_per_class([3, 2, 1]) == 2


def test_other_optimizers_and_models_without_a_classifier_are_refused():
    trainer = make_trainer()
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="optimizer 'gsa'"):
        make_gkp().on_train_start(trainer)
    with pytest.raises(TypeError, match='get_classifier'):
        encoder_parameters(nn.Linear(2, 2))


def test_groups_file_names_the_classes_of_every_grouping(tmp_path):
    names = list('abcdef')
    folder = SimpleNamespace(path=tmp_path, writes=True)

    def start():
        trainer = make_trainer(groups=[0, 1, 1, 2, 2, 2])
        trainer.folder = folder
        return trainer, GKP(ClassDistribution(COUNTS, class_names=names), Loader(), num_groups=3, regroup_every=2)

    trainer, gkp = start()
    rows = train(trainer, gkp, 0, 3)
    assert rows[0]['grouped_by'] == 'given'
    entries = json.loads((tmp_path / 'groups.json').read_text())
    assert entries[0] == {'from_epoch': 0, 'grouped_by': 'given', 'groups': [[0], [1, 2], [3, 4, 5]],
                          'names': [['a'], ['b', 'c'], ['d', 'e', 'f']]}
    assert [e['from_epoch'] for e in entries] == [0, 2] and entries[1]['grouped_by'] == gkp.source
    for k, group in enumerate(entries[1]['groups']):
        assert group == (gkp.groups == k).nonzero().flatten().tolist()
        assert entries[1]['names'][k] == [names[c] for c in group]
    resumed, again = start()
    resumed.model.load_state_dict(trainer.model.state_dict())
    resumed.optimizer.load_state_dict(trainer.optimizer.state_dict())
    again.load_state_dict(gkp.state_dict())
    (tmp_path / 'groups.json').unlink()
    again.on_train_start(resumed)
    assert json.loads((tmp_path / 'groups.json').read_text()) == entries


@pytest.mark.parametrize('options, warns', [
    ({'regroup_every': 6}, True), ({'regroup_epochs': []}, True), ({'regroup_epochs': [5]}, True),
    ({'regroup_every': 5}, False), ({'regroup_epochs': [0]}, False)], ids=str)
def test_grouping_that_never_comes_is_told_at_the_start(caplog, options, warns):
    with caplog.at_level(logging.WARNING):
        make_gkp(**options).on_train_start(make_trainer(epochs=6))
    assert ('there is no penalty' in caplog.text) == warns


@pytest.mark.parametrize('options, message', [
    ({'num_groups': 2.5}, 'num_groups must be a whole number'),
    ({'regroup_every': 2.5}, 'regroup_every must be a whole number'),
    ({'fisher_images': 0}, 'fisher_images must be'),
    ({'regroup_epochs': 5}, 'list of epochs'),
    ({'regroup_epochs': [1, 2.5]}, 'regroup_epochs must be a whole number'),
    ({'foo': 1}, "no option 'foo'.*regroup_every"),
])
def test_options_that_cannot_be_meant_are_refused(options, message):
    from timm_lt.training import ConfigError
    from timm_lt.training.build import build_gkp
    from timm_lt.training.options import GKPOptions
    with pytest.raises(ConfigError, match=message):
        build_gkp(GKPOptions(gkp=True, gkp_kwargs=options), 0, Loader(), ClassDistribution(COUNTS), {})


def test_script_reads_no_test_image_before_the_last_epoch_is_over(tmp_path, monkeypatch, capsys):
    training = importlib.import_module('timm_lt.training.run')
    reads = []

    class Guard:
        """The test loader; it must not be read while the trainer trains."""

        def __init__(self, loader):
            self.loader = loader

        def __len__(self):
            return len(self.loader)

        def __iter__(self):
            assert reads == ['trained'], 'a test image was read in training'
            return iter(self.loader)

    evaluation, build_data, fit = InputPipeline.evaluation, training.build_data, Trainer.fit
    parts = []

    def noted(options):
        parts.append(build_data(options))
        return parts[0]

    def guarded(self, images, *args):
        loader = evaluation(self, images, *args)
        return Guard(loader) if images is parts[0].test else loader

    def fit_and_note(self):
        fit(self)
        reads.append('trained')

    monkeypatch.setattr(training, 'build_data', noted)
    monkeypatch.setattr(InputPipeline, 'evaluation', guarded)
    monkeypatch.setattr(Trainer, 'fit', fit_and_note)
    for name in ('write_report', 'write_hub', 'write_card'):  # slow, and not of interest here
        monkeypatch.setattr(training.RunFolder, name, lambda self, *args: None)
    status = training.main([
        '--gkp', '--opt', 'gsa', '--gkp-kwargs', 'regroup_every=1', 'num_groups=3', '--epochs', '2',
        '--images-per-class', '12', '--imbalance-ratio', '4', '-b', '16', '--output', str(tmp_path),
        '--experiment', 'run', '--quiet'])
    captured = capsys.readouterr()
    assert status == 0 and reads == ['trained'], captured.err
    header, *rows = (tmp_path / 'run' / 'summary.csv').read_text().splitlines()
    assert len(rows) == 2 and 'quality_few' in header and 'radii' in header and 'penalty' in header


def test_early_best_epoch_is_reported_with_the_time_of_the_whole_run(tmp_path, monkeypatch):
    """The bank has dropped every snapshot of that epoch by then."""
    training = importlib.import_module('timm_lt.training.run')
    scores, seconds = iter(range(100)), []

    def rising(self):
        return torch.full((10,), float(next(scores)))

    def falling(*args):
        return lambda trainer: {'top1': 50.0 - trainer.progress.epoch}

    def fit_and_note(self, fit=Trainer.fit):
        fit(self)
        seconds.append((self.progress.train_seconds, self.progress.images))

    monkeypatch.setattr('timm_lt.gkp.quality.FeatureQuality.score', rising)
    monkeypatch.setattr('timm_lt.training.stage.validation_metrics', falling)
    monkeypatch.setattr(Trainer, 'fit', fit_and_note)
    for name in ('write_report', 'write_hub', 'write_card'):
        monkeypatch.setattr(training.RunFolder, name, lambda self, *args: None)
    status = training.main([
        '--gkp', '--opt', 'gsa', '--opt-kwargs', 'Z=0', '--gkp-kwargs', 'regroup_epochs=[]', 'num_groups=3',
        f'directory={tmp_path / "bank"}', '--epochs', '4', '--images-per-class', '12', '--imbalance-ratio', '4', '-b',
        '16', '--val-fraction', '0.2', '--output', str(tmp_path), '--experiment', 'run', '--quiet'])
    assert status == 0
    metrics = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    (total, images), = seconds
    assert metrics['protocol']['reported_epoch'] == 0
    assert metrics['wall_seconds'] == round(total, 3)
    assert metrics['images_per_second'] == round(images / total, 2)
