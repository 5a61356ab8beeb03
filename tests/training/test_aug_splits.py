"""Augmentation splits: views, loss, accumulation, resume, refusals."""

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from timm.loss import JsdCrossEntropy

from timm_lt.data.transforms import Augmentation, SplitViews
from timm_lt.optim import BatchClosure
from timm_lt.training import ConfigError, main, parse_args
from timm_lt.training.aug_splits import SplitLoss, SplitModel
from timm_lt.training.trainer import Trainer

JSD = ['--loss', 'jsd', '--aug-splits', '3', '--color-jitter', '0.4']
TINY = ['--dataset', 'timm_lt/digits', '--epochs', '2', '-b', '8', '--images-per-class', '6', '--imbalance-ratio', '2',
        '--workers', '0', '--quiet', '--model', 'test_resnet', '--img-size', '32', '--grad-accum-steps', '2']


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_first_split_is_clean_and_the_others_are_changed_copies_of_the_same_crop():
    image = Image.effect_noise((20, 20), 80).convert('RGB')
    image.putpixel((3, 3), (250, 10, 60))
    red = Image.merge('RGB', [band.point(lambda v, k=k: v // (k + 1)) for k, band in enumerate(image.split())])
    views = SplitViews(Augmentation((3, 16, 16), (0.5,) * 3, (0.5,) * 3, crop_mode='rrc', grayscale_prob=1.0), 3)(red)
    assert views.shape == (3, 3, 16, 16) and views.dtype == torch.uint8
    clean = Image.fromarray(views[0].permute(1, 2, 0).numpy())
    grey = torch.tensor(list(clean.convert('L').getdata())).view(16, 16)
    assert (views[0][0] != views[0][1]).any()
    assert (views[1:] == grey).all()
    with pytest.raises(ValueError, match='no Cutout'):
        SplitViews(Augmentation((3, 16, 16), (0.5,) * 3, (0.5,) * 3, reprob=0.5), 3)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_loss_of_a_window_is_the_mean_of_timms_loss_over_its_micro_batches(smoothing):
    torch.manual_seed(0)
    model = SplitModel(timm.create_model('test_resnet', num_classes=4).eval())
    images = [torch.randn(n, 3, 3, 32, 32) for n in (3, 2)]
    targets = [torch.randint(4, (len(x),)) for x in images]
    closure = BatchClosure(model, SplitLoss(3, smoothing), images, targets)
    loss = closure()
    timms = JsdCrossEntropy(3, smoothing=smoothing)
    each = [timms(model.model(torch.cat(list(x.transpose(0, 1)))), t) for x, t in zip(images, targets)]
    assert loss == pytest.approx(((3 * each[0] + 2 * each[1]) / 5).item(), rel=1e-5)
    assert [len(logits) for logits in closure.output] == [3, 2]  # of the clean images, for the training metrics


def test_a_resumed_run_of_splits_is_the_uninterrupted_one(tmp_path, monkeypatch):
    options = [*TINY, *JSD, '--opt', 'sam', '--output', str(tmp_path)]
    assert main([*options, '--experiment', 'whole']) == 0
    finish = Trainer._finish_epoch

    def interrupt(self, row):
        finish(self, row)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, '_finish_epoch', interrupt)
        assert main([*options, '--experiment', 'parts']) == 130
    assert main([*options, '--experiment', 'parts', '--resume', 'auto']) == 0
    whole, parts = (load_file(tmp_path / name / 'hub/model.safetensors') for name in ('whole', 'parts'))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert not any(k.startswith('model.') for k in whole)


def test_a_class_aware_optimizer_is_refused_in_one_sentence(tmp_path, capsys):
    assert main([*TINY, *JSD, '--opt', 'imbsam', '--output', str(tmp_path)]) == 2
    assert 'gives no value per sample' in capsys.readouterr().err


@pytest.mark.parametrize('options, message', [
    (['--aug-splits', '3'], 'give both --loss jsd and --aug-splits 3'), (['--loss', 'jsd'], 'give both --loss jsd'),
    (['--loss', 'jsd', '--aug-splits', '1', '--aa', 'trivial'], '0 or >= 2'),
    (['--loss', 'jsd', '--aug-splits', '3'], 'needs an augmentation of the copies'),
    ([*JSD, '--mixup', '0.2'], 'first split clean'), ([*JSD, '--reprob', '0.2'], 'first split clean'),
    (['--jsd-loss'], '--loss jsd --aug-splits 3'),
])
def test_options_that_splits_cannot_take_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_args(options)
