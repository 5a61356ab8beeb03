"""Combinations that only the built parts show to be impossible end in one sentence, before anything is trained."""

import pytest
import torch
from accelerate.state import AcceleratorState
from timm.loss import LOSS_TYPES

import timm_lt
from timm_lt import ClassDistribution
from timm_lt.losses._factory import TIMM_LOSS_NAMES
from timm_lt.optim import BatchClosure, optimizer_step
from timm_lt.training import build, main
from timm_lt.training.checks import check_sample_values
from timm_lt.training.config import ConfigError, parse_args

COUNTS = [8, 6, 4, 2]
TINY = ['--dataset', 'timm_lt/digits', '--epochs', '1', '-b', '32', '--images-per-class', '8', '--imbalance-ratio',
        '2', '--workers', '0', '--quiet', '--experiment', 'run', '--model', 'test_resnet', '--img-size', '32']


class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(x)

    def get_classifier(self):
        return self.fc


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('mixing', [[], ['--smoothing', '0.1'], ['--mixup', '0.2']], ids=['hard', 'smooth', 'mixed'])
@pytest.mark.parametrize('opt', ['sgd', *timm_lt.list_optimizers()])
@pytest.mark.parametrize('loss', TIMM_LOSS_NAMES)
def test_every_loss_of_timm_steps_with_every_optimizer_or_is_refused_at_the_start(loss, opt, mixing):
    distribution, labels = ClassDistribution(COUNTS), torch.arange(8) % 4
    model = Head()
    try:
        options = parse_args(['--loss', loss, '--opt', opt, *mixing, *(
            ['--opt-kwargs', 'eta=5'] if opt in ('imbsam', 'ssesam') else [])])
        mixes = options.augmentation.mixes
        criterion = build.build_loss(options.loss, distribution, mixes)
        optimizer = build.build_optimizer(options.optimizer, options.gkp, model, distribution, 0.1)
        check_sample_values(criterion, loss, optimizer, opt, 4, mixes)
    except ConfigError as e:
        assert str(e) and (loss in ('bce', 'jsd', 'twoway', 'zlpr', 'db') or (loss == 'asl' and '--mixup' in mixing))
        return
    images, mix = torch.randn(8, 6), build.build_mixing(options.augmentation, options.loss, distribution)
    target = labels
    if mix is not None:
        images, target = mix(images[:, None, None], labels)
        images = images[:, 0, 0]
    result = optimizer_step(optimizer, BatchClosure(model, criterion, images, target, labels=labels))
    assert torch.isfinite(result.loss) and all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('options, words', [
    (['--loss', 'bce', '--opt', 'gsa'], '--loss bce gives no value per sample'),
    (['--loss', 'bce', '--opt', 'lookahead_ccsam'], '--loss bce gives no value per sample'),
    (['--loss', 'bce', '--opt', 'gsa', '--gkp'], '--loss bce gives no value per sample'),
    (['--loss', 'bce', '--drw-epoch', '0'], 'takes no class weights'),
    (['--stage2', 'crt', '--stage2-loss', 'bce'], '--stage2-loss bce gives none'),
    (['--grad-checkpointing', '--torchcompile', 'eager'], 'use --torchcompile inductor or aot_eager'),
])
def test_what_cannot_work_is_refused_before_training(tmp_path, capsys, options, words):
    try:
        assert main([*TINY, '--output', str(tmp_path), *options]) == 2
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1
    assert not list(tmp_path.rglob('summary.csv'))


def test_the_losses_of_timm_are_those_that_were_checked():
    assert set(TIMM_LOSS_NAMES) <= set(LOSS_TYPES)
