import math
import threading
from types import SimpleNamespace

import pytest
import torch

from timm_lt.gkp import QualityMeter, feature_quality, quality


def naive(features, labels, num_classes, beta):
    """Loops, in float64."""
    features = features.double()
    centroids = {c: features[labels == c].mean(0) for c in range(num_classes) if bool((labels == c).any())}
    result = []
    for c in range(num_classes):
        others = [float((centroids[c] - centroids[o]).norm()) for o in centroids if o != c] if c in centroids else []
        mine = features[labels == c]
        variance = sum(float((f - centroids[c]) @ (f - centroids[c])) for f in mine) / max(len(mine), 1)
        result.append(min(others) - beta * math.log(variance) if others and variance > 0 else math.nan)
    return torch.tensor(result, dtype=torch.float64)


def test_quality_matches_naive_loop_whatever_the_batches():
    features = torch.randn(60, 4) * 2 + 5
    labels = torch.randint(0, 6, (60,))
    reference = naive(features, labels, 7, 0.5)
    whole = feature_quality(features, labels, 7)
    torch.testing.assert_close(whole.quality, reference, equal_nan=True)
    meter = QualityMeter(7)
    for f, y in zip(features.split(17), labels.split(17)):
        meter.update(f, y)
    torch.testing.assert_close(meter.compute().quality, reference, equal_nan=True)


def test_absent_and_single_image_classes_are_not_defined_and_the_latter_is_ranked_by_distance():
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]])
    result = feature_quality(features, torch.tensor([0, 0, 2]), 4)
    assert result.present.tolist() == [True, False, True, False]
    assert result.defined.tolist() == [True, False, False, False]
    assert result.quality.isnan().tolist() == [False, True, True, True]
    assert result.score()[2] == 3.0 and result.score()[1].isnan()


def test_class_of_equal_features_has_no_variance_despite_rounding():
    features = torch.full((5, 3), 0.1).mul(torch.tensor([1.0, 7.0, 33.0]))
    result = feature_quality(torch.cat([features, features[:2] + 1]), torch.tensor([0] * 5 + [1] * 2), 2)
    assert result.variance.tolist() == [0.0, 0.0] and not result.defined.any()
    assert result.score().isnan().all()


def test_one_class_alone_has_no_quality():
    result = feature_quality(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), 3)
    assert not result.defined.any() and result.distance.tolist() == [0.0, 0.0, 0.0]


def test_beta_and_variant_change_the_quality():
    features, labels = torch.randn(20, 3), torch.arange(20) % 4
    paper = feature_quality(features, labels, 4).quality
    assert not torch.allclose(paper, feature_quality(features, labels, 4, beta=0.9).quality)
    assert not torch.allclose(paper, feature_quality(features, labels, 4, beta=0.5, variant='released').quality)


def test_mean_is_over_defined_classes_and_absent_without_any():
    result = feature_quality(torch.randn(12, 3), torch.arange(12) % 3, 5)
    assert result.mean(torch.ones(5, dtype=torch.bool)) == pytest.approx(float(result.quality[:3].mean()))
    assert result.mean(torch.tensor([False, False, False, True, True])) is None


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match='features must be'):
        QualityMeter(3).update(torch.randn(4, 2, 2), torch.zeros(4, dtype=torch.int64))


def split_far_from_the_origin():
    features = torch.randn(60, 4, dtype=torch.float64) + 1e4
    labels = torch.randint(0, 6, (60,))
    return features, labels, naive(features, labels, 7, 0.5)


def test_features_far_from_the_origin_lose_no_digits():
    features, labels, reference = split_far_from_the_origin()
    meter = QualityMeter(7)
    for f, y in zip(features.split(17), labels.split(17)):
        meter.update(f, y)
    torch.testing.assert_close(meter.compute().quality, reference, rtol=1e-11, atol=1e-11, equal_nan=True)


def test_processes_merge_to_the_quality_of_all_images(monkeypatch):
    features, labels, reference = split_far_from_the_origin()
    meters, shared, barrier = [QualityMeter(7), QualityMeter(7)], {}, threading.Barrier(2)

    def all_reduce(tensor):
        me = threading.current_thread().name
        shared[me] = tensor.clone()
        barrier.wait(10)
        tensor.copy_(sum(shared.values()))
        barrier.wait(10)

    monkeypatch.setattr(quality, 'dist', SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, all_reduce=all_reduce))
    meters[0].update(features[:50], labels[:50])
    meters[1].update(features[50:], labels[50:])
    threads = [threading.Thread(target=meter.reduce, args=(4,), name=str(i)) for i, meter in enumerate(meters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for meter in meters:
        torch.testing.assert_close(meter.compute().quality, reference, rtol=1e-11, atol=1e-11, equal_nan=True)
