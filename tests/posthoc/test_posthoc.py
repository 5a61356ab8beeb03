"""Corrections after training: formulas, log space, choice on validation images, storage."""

import json

import pytest
import timm
import torch

import timm_lt
from timm_lt.posthoc import (
    METHODS,
    PostHoc,
    choose_tau,
    fit_temperature,
    logit_adjust,
    rebalance_predictions,
    scale_temperature,
    tau_normalize,
    tau_normalize_logits,
)

COUNTS = [60, 20, 5]


def long_tailed_logits(num_images=300, seed=0, bias=(2.0, 0.5, -1.5)):
    """Logits of a classifier that favours the large classes, with balanced labels."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(num_images) % 3
    logits = torch.randn(num_images, 3, generator=generator, dtype=torch.float64)
    return logits + 1.5 * torch.eye(3, dtype=torch.float64)[targets] + torch.tensor(bias, dtype=torch.float64), targets


@pytest.mark.parametrize('tau', [0.0, 0.5, 1.0, 1.7])
def test_rebalancing_is_the_published_quotient(tau):
    logits, _ = long_tailed_logits()
    probs = logits.softmax(1)
    expected = torch.empty_like(probs)
    for c in range(3):
        total = sum(float(probs[i, c]) for i in range(len(probs)))
        for i in range(len(probs)):
            expected[i, c] = probs[i, c] / total ** tau
    torch.testing.assert_close(rebalance_predictions(logits, tau).exp(), expected, rtol=1e-12, atol=0)


def test_inductive_rebalancing_takes_logits_or_column_sums_and_one_image():
    logits, _ = long_tailed_logits()
    other, _ = long_tailed_logits(seed=1)
    sums = other.softmax(1).sum(0)
    expected = logits.softmax(1) / sums ** 1.4
    for reference in (other, sums, sums.tolist()):
        torch.testing.assert_close(rebalance_predictions(logits, 1.4, reference).exp(), expected)
        torch.testing.assert_close(rebalance_predictions(logits[7], 1.4, reference).exp(), expected[7])
    # its own set as the reference is the transductive form
    torch.testing.assert_close(rebalance_predictions(logits, 1.4, logits), rebalance_predictions(logits, 1.4))
    with pytest.raises(ValueError, match='pass reference= for a single image'):
        rebalance_predictions(logits[7], 1.4)


@pytest.mark.parametrize('tau', [1.0, 1.7])
@pytest.mark.filterwarnings('ignore:some classes are almost never predicted')
def test_a_class_that_is_never_predicted_stays_finite_in_float32(tau):
    logits, _ = long_tailed_logits()
    logits[:, 2] = -400.0 + torch.arange(300) / 300
    scores = rebalance_predictions(logits.float(), tau)
    assert bool(scores.isfinite().all())
    torch.testing.assert_close(scores.double(), rebalance_predictions(logits, tau), rtol=1e-5, atol=1e-4)
    plain = logits.float().softmax(1)
    assert not bool((plain / plain.sum(0) ** tau).isfinite().all())  # the quotient as it is written


@pytest.mark.filterwarnings('ignore:some classes are almost never predicted')
def test_floor_keeps_a_never_predicted_class_from_winning_when_tau_is_above_one():
    logits, _ = long_tailed_logits()
    logits[:, 2] = -100.0
    assert bool((rebalance_predictions(logits, 1.7).argmax(1) == 2).all())
    guarded = rebalance_predictions(logits, 1.7, floor=0.001)
    assert not bool((guarded.argmax(1) == 2).any())
    # the other classes are treated as before
    torch.testing.assert_close(guarded[:, :2], rebalance_predictions(logits, 1.7)[:, :2])
    balanced, _ = long_tailed_logits()
    assert torch.equal(rebalance_predictions(balanced, 1.7, floor=0.001), rebalance_predictions(balanced, 1.7))
    # a column sum of 0, given as such
    assert bool(rebalance_predictions(logits, 1.7, [10.0, 5.0, 0.0]).isfinite().all())


@pytest.mark.parametrize('transductive', [False, True])
@pytest.mark.parametrize('tau', [1.0, 1.4, 1.7])
def test_a_chosen_correction_never_lets_a_class_win_that_is_never_predicted(tau, transductive):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 9, (400,), generator=generator)
    logits = torch.randn(400, 10, generator=generator)
    logits[torch.arange(400), targets] += 6
    logits[:, 9] = -60 + torch.randn(400, generator=generator)
    correct = choose_tau('rebalance', logits, targets, taus=[tau], transductive=transductive)
    assert correct.score > 0.9 and not bool((correct(logits).argmax(1) == 9).any())
    assert PostHoc('rebalance', log_column_sums=correct.log_column_sums, transductive=transductive).floor > 0
    with pytest.warns(UserWarning, match='floor=0.001'):
        assert bool((rebalance_predictions(logits, tau).argmax(1) == 9).any())


@pytest.mark.parametrize('floor', [0.0, 0.001])
@pytest.mark.parametrize('tau', [0.0, 1.0, 1.5])
@pytest.mark.filterwarnings('ignore:some classes are almost never predicted')
def test_a_masked_class_keeps_minus_infinity(tau, floor):
    logits, _ = long_tailed_logits()
    logits[:, 2] = float('-inf')
    other, _ = long_tailed_logits(seed=1)
    for reference in (None, logits, other):
        scores = rebalance_predictions(logits, tau, reference, floor=floor)
        assert bool((scores[:, 2] == float('-inf')).all()) and bool(scores[:, :2].isfinite().all())
    correct = choose_tau('rebalance', logits, torch.arange(300) % 2, taus=[tau], floor=floor)
    assert correct == PostHoc.from_dict(json.loads(json.dumps(correct.to_dict(), allow_nan=False)))


def test_logit_adjustment_subtracts_the_log_prior():
    logits, _ = long_tailed_logits()
    expected = torch.stack([logits[:, c] - 0.8 * torch.log(torch.tensor(COUNTS[c] / 85, dtype=torch.float64))
                            for c in range(3)], 1)
    torch.testing.assert_close(logit_adjust(logits, COUNTS, 0.8), expected)
    torch.testing.assert_close(logit_adjust(logits[3], timm_lt.ClassDistribution(COUNTS), 0.8), expected[3])
    assert torch.equal(logit_adjust(logits, COUNTS, 0.0), logits)


@pytest.mark.parametrize('tau', [0.0, 0.7, 1.0])
def test_tau_normalisation_divides_each_row_by_its_norm(tau):
    weight = torch.randn(4, 6, dtype=torch.float64)
    weight[3] = 0
    result = tau_normalize(weight, tau)
    for c in range(3):
        norm = sum(float(w) ** 2 for w in weight[c]) ** 0.5
        torch.testing.assert_close(result[c], weight[c] / norm ** tau)
    assert torch.equal(result[3], weight[3])


def test_tau_normalisation_of_a_model_changes_its_classifier_and_agrees_with_the_logits_form():
    torch.manual_seed(0)
    model = timm.create_model('resnet18', num_classes=5, pretrained=False).eval()
    with torch.no_grad():
        model.fc.weight.mul_(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        expected = tau_normalize_logits(before, model.fc.weight, model.fc.bias, 0.6)
        assert tau_normalize(model, 0.6) is model
        torch.testing.assert_close(model(images), expected)
    assert float(model.fc.bias.detach().abs().max()) == 0
    assert model.fc.weight.requires_grad and model.fc.weight.grad is None


def test_tau_normalisation_refuses_a_model_without_linear_classifier():
    with pytest.raises(TypeError, match='one classifier, got none'):
        tau_normalize(timm.create_model('resnet18', num_classes=0), 0.5)


def test_temperature_divides_and_the_fitted_one_has_the_least_likelihood_loss():
    logits, targets = long_tailed_logits(bias=(0, 0, 0))
    torch.testing.assert_close(scale_temperature(logits, 4.0), logits / 4)
    fitted = fit_temperature(logits * 3, targets)

    def loss(t):
        return float(torch.nn.functional.cross_entropy(logits * 3 / t, targets))

    assert loss(fitted.tau) < min(loss(fitted.tau * 1.02), loss(fitted.tau / 1.02))
    assert fitted.tau == pytest.approx(3 * fit_temperature(logits, targets).tau, rel=1e-6)
    # nothing to calibrate: the end of the range, not an overflow
    assert fit_temperature(torch.eye(3) * 9, torch.arange(3)).tau == pytest.approx(0.01)


@pytest.mark.parametrize('method', METHODS[:3])
def test_chosen_tau_is_the_best_of_those_tried_on_validation_images(method):
    logits, targets = long_tailed_logits()
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0], [1.0], [0.4]]).expand(3, 4))
    given = {'logit_adjust': {'class_counts': COUNTS}, 'tau_normalize': {'classifier': layer}}.get(method, {})
    taus = [0.0, 0.5, 1.0, 1.5, 2.0]
    chosen = choose_tau(method, logits, targets, taus=taus, **given)

    def recall(scores):
        return sum(float((scores.argmax(1)[targets == c] == c).double().mean()) for c in range(3)) / 3

    by_hand = {
        'rebalance': lambda t: logits.softmax(1) / logits.softmax(1).sum(0) ** t,
        'logit_adjust': lambda t: logits - t * torch.tensor(COUNTS).double().log(),
        'tau_normalize': lambda t: (logits - layer.bias.detach()) / layer.weight.detach().double().norm(dim=1) ** t,
    }[method]
    scores = [recall(by_hand(t)) for t in taus]
    assert chosen.score == pytest.approx(max(scores)) and chosen.tau == taus[scores.index(max(scores))]
    assert chosen.score > scores[0] and chosen.metric == 'balanced_accuracy'
    assert torch.equal(chosen(logits).argmax(1), by_hand(chosen.tau).argmax(1))


def test_choice_counts_classes_of_the_validation_part_and_can_count_images():
    # class 0 has nearly all images; class 2 none
    targets = torch.tensor([0] * 18 + [1] * 2)
    logits = torch.zeros(20, 3)
    logits[:, 0] = 1.0
    logits[:12, 0] = 4.0
    balanced = choose_tau('logit_adjust', logits, targets, class_counts=[60, 10, 60], taus=[0.0, 1.0])
    assert (balanced.tau, balanced.score) == (1.0, pytest.approx((12 / 18 + 1) / 2))
    images = choose_tau('logit_adjust', logits, targets, class_counts=[60, 10, 60], taus=[1.0, 0.0], metric='accuracy')
    assert (images.tau, images.score) == (0.0, pytest.approx(0.9))


def test_of_equally_good_taus_the_smallest_is_chosen():
    chosen = choose_tau('logit_adjust', torch.eye(3) * 50, torch.arange(3), class_counts=COUNTS, taus=[2.0, 0.5, 1.0])
    assert (chosen.tau, chosen.score) == (0.5, 1.0)


def test_correction_is_stored_as_json_and_works_on_a_single_image():
    logits, targets = long_tailed_logits()
    layer = torch.nn.Linear(4, 3)
    for chosen in (
            choose_tau('rebalance', logits, targets), choose_tau('logit_adjust', logits, targets, class_counts=COUNTS),
            choose_tau('tau_normalize', logits, targets, classifier=layer), fit_temperature(logits, targets)):
        again = PostHoc.from_dict(json.loads(json.dumps(chosen.to_dict())))
        assert again == chosen
        assert 'inductive' in chosen.label and not chosen.transductive
        whole = chosen(logits)
        torch.testing.assert_close(again(logits[5]), whole[5])
        assert chosen(logits.float()).dtype == torch.float32
        assert chosen(logits.bfloat16()).dtype == torch.float32


def test_transductive_choice_is_labelled_and_needs_the_whole_set():
    logits, targets = long_tailed_logits()
    test, _ = long_tailed_logits(seed=3)
    chosen = choose_tau('rebalance', logits, targets, transductive=True)
    assert chosen.transductive and 'transductive' in chosen.label and chosen.log_column_sums is None
    assert chosen.to_dict()['transductive'] is True
    torch.testing.assert_close(chosen(test), rebalance_predictions(test, chosen.tau))
    for single in (test[0], test[:1]):
        with pytest.raises(ValueError, match='single image'):
            chosen(single)


def test_training_images_can_be_the_reference():
    logits, targets = long_tailed_logits()
    training, _ = long_tailed_logits(seed=4)
    chosen = choose_tau('rebalance', logits, targets, reference=training)
    torch.testing.assert_close(chosen(logits), rebalance_predictions(logits, chosen.tau, training))


def test_bad_input_is_a_clear_error():
    logits, targets = long_tailed_logits()
    with pytest.raises(ValueError, match='tau must be in'):
        rebalance_predictions(logits, -1.0)
    with pytest.raises(ValueError, match='reference must be'):
        rebalance_predictions(logits, 1.0, torch.ones(4))
    with pytest.raises(ValueError, match='column sums must be'):
        rebalance_predictions(logits, 1.0, [-1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match='floating-point'):
        rebalance_predictions(targets)
    with pytest.raises(ValueError, match='entries'):
        logit_adjust(logits, [1, 2])
    with pytest.raises(ValueError, match='training image'):
        logit_adjust(logits, [1, 2, 0])
    with pytest.raises(TypeError, match='class_counts is missing'):
        choose_tau('logit_adjust', logits, targets)
    with pytest.raises(ValueError, match='needs classifier'):
        choose_tau('tau_normalize', logits, targets)
    with pytest.raises(ValueError, match='method must be'):
        choose_tau('temperature', logits, targets)
    with pytest.raises(ValueError, match='pass no reference'):
        choose_tau('rebalance', logits, targets, reference=logits, transductive=True)
    with pytest.raises(ValueError, match='labels must be in'):
        choose_tau('rebalance', logits, targets + 1)
    with pytest.raises(ValueError, match='logits .M, C. and labels'):
        choose_tau('rebalance', logits, targets[:5])
    with pytest.raises(ValueError, match='one or more'):
        choose_tau('rebalance', logits, targets, taus=[])
    with pytest.raises(ValueError, match='temperature must be'):
        scale_temperature(logits, 0.0)
    with pytest.raises(ValueError, match='needs class_counts'):
        PostHoc('logit_adjust')
    with pytest.raises(ValueError, match='only method'):
        PostHoc('temperature', transductive=True)
    with pytest.raises(ValueError, match='has the entries'):
        PostHoc.from_dict({'method': 'temperature', 'strength': 1})
    with pytest.raises(ValueError, match='log_column_sums is of 4 classes, the logits of 3'):
        PostHoc('rebalance', log_column_sums=[0.0] * 4)(logits)
    for function in (scale_temperature, lambda z: logit_adjust(z, COUNTS)):
        with pytest.raises(ValueError, match=r'\(B, C\) or \(C,\)'):
            function(logits[None])
    with pytest.raises(ValueError, match='weight is of'):
        tau_normalize_logits(logits, torch.ones(4, 2))


def test_temperature_default_changes_nothing():
    logits, _ = long_tailed_logits()
    assert torch.equal(PostHoc('temperature')(logits), logits)
