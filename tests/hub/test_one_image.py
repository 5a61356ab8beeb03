"""A loaded checkpoint on single images."""

import pytest
import torch
from PIL import Image

import timm_lt
from timm_lt.data import ImageReadError
from timm_lt.posthoc import PostHoc


@pytest.fixture(scope='module')
def digits():
    checkpoint = timm_lt.hub.load('digits')
    return checkpoint, timm_lt.data.create_dataset('timm_lt/digits', split='test')


def test_a_file_and_a_picture_give_names_and_probabilities(digits, tmp_path):
    checkpoint, images = digits
    image, _ = images[0]
    image.save(tmp_path / 'digit.png')
    found = checkpoint(str(tmp_path / 'digit.png'))
    assert found == checkpoint(image) == checkpoint(tmp_path / 'digit.png')
    assert set(found) == set(checkpoint.class_names) and sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    with torch.no_grad():
        scores = checkpoint(checkpoint.transform(image.convert('RGB'))[None])[0].softmax(0)
    assert next(iter(found)) == checkpoint.class_names[int(scores.argmax())]
    assert max(found.values()) == pytest.approx(float(scores.max()))
    with pytest.raises(ImageReadError, match='nowhere'):
        checkpoint('nowhere.png')


def test_the_correction_is_applied_to_one_image(digits):
    checkpoint, images = digits
    image = images[0][0]
    plain = timm_lt.hub.load('digits')
    plain.posthoc = None
    corrected = timm_lt.hub.load('digits')
    counts = [1.0] * 9 + [1e6]
    corrected.posthoc = PostHoc.from_dict({'method': 'logit_adjust', 'tau': 1.0, 'class_counts': counts})
    assert corrected(image)[plain.class_names[9]] < plain(image)[plain.class_names[9]]


def test_a_grey_network_takes_a_coloured_picture(digits):
    import timm
    checkpoint, _ = digits
    model = timm.create_model('test_resnet', num_classes=3, in_chans=1).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (1, 32, 32), 'mean': (0.5,), 'std': (0.5,)}
    grey = timm_lt.hub.Checkpoint(model, None, None, None, {}, {}, None, 'grey')
    assert set(grey(Image.new('RGB', (40, 50), (9, 8, 7)))) == {'0', '1', '2'}


def test_the_representation_is_one_short_line(digits):
    text = repr(digits[0])
    assert len(text) < 120 and '\n' not in text
    assert all(word in text for word in ("'digits'", 'resnet20_cifar', '269,722 parameters', '10 classes'))
