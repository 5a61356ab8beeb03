"""CC-SAM as an optimizer: closed form and general layers against a plain reference, and the engine's promises."""

import copy
import math
import pickle

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate import Accelerator
from ccsam_cases import COUNTS, SCALE, SHARE, Net, make, make_batch, make_model
from torch.func import functional_call

import timm_lt
from timm_lt.optim import BatchClosure, optimizer_step


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_bit_equal(a, b):
    for key in a:
        assert torch.equal(a[key], b[key]), key


def reference_gradient(model, x, y, variant, perturbed, soft=None, criterion=F.cross_entropy):
    """Class by class, one functional forward of the whole batch each."""
    theta = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    names = [k for k in theta if perturbed(k)]
    k = sum(theta[n].numel() for n in names)
    size = flat(theta[n] for n in names).norm()

    def losses(at, target):
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        return criterion(functional_call(model, {**at, **buffers}, (x,)), target, reduction='none')

    total = (1 - SHARE) * losses(theta, y if soft is None else soft).sum()
    for c in y.unique().tolist():
        rows = y == c
        ascent = losses(theta, soft if soft is not None and variant == 'released' else y)
        gradients = torch.autograd.grad(ascent[rows].mean(), [theta[n] for n in names], allow_unused=True)
        joint = flat(gradients).norm()
        at = dict(theta)
        for n, g in zip(names, gradients):
            norm = joint if variant == 'paper' else g.norm()
            if norm < 1e-13 * joint:
                continue  # a bias before BatchNorm: rounding has no direction
            rho = (size / (2 * norm)).sqrt() * (k * max(COUNTS[c] - 1, 1)) ** -0.25
            at[n] = theta[n] + SCALE * math.sqrt(k) * rho * g / norm
        total = total + SHARE * losses(at, y)[rows].sum()
    return dict(zip(theta, torch.autograd.grad(total / len(y), list(theta.values()))))


def gradient(model, optimizer, x, y, criterion=None, **options):
    loss = optimizer.compute_grads(BatchClosure(model, criterion or nn.CrossEntropyLoss(), x, y, **options))
    return {k: p.grad.clone() for k, p in model.named_parameters()}, loss


def assert_close(a, b, rtol=1e-9, atol=1e-11):
    for key in b:
        torch.testing.assert_close(a[key], b[key], rtol=rtol, atol=atol, msg=lambda m, key=key: f'{key}: {m}')


@pytest.mark.parametrize('variant', ['paper', 'released'])
@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('head', ['linear', 'cosine'])
@pytest.mark.parametrize('layers', ['classifier', 'fc*', '*'])
def test_gradient_matches_a_loop_over_classes(variant, norm, head, layers):
    model = make_model(norm=norm, head=head)
    x, y = make_batch()
    ours, loss = gradient(model, make(model, variant=variant, layers=layers), x, y)
    reference = reference_gradient(model, x, y, variant, lambda n: layers == '*' or n.startswith('fc'))
    assert_close(ours, reference)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y))


@pytest.mark.parametrize('labels', [[2, 2, 2, 2], [4], [0, 4, 4, 4]])
def test_batches_of_one_class_one_sample_and_one_image_classes_match(labels):
    model = make_model(norm='group')
    x, _ = make_batch(size=len(labels))
    y = torch.tensor(labels)
    for layers in ('classifier', 'fc*'):
        ours, _ = gradient(model, make(model, layers=layers), x, y)
        assert_close(ours, reference_gradient(model, x, y, 'paper', lambda n: n.startswith('fc')))


@pytest.mark.parametrize('variant', ['paper', 'released'])
@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('layers', ['classifier', 'fc*', '*'])
def test_mixup_perturbs_along_the_loss_of_the_variant(layers, norm, variant):
    model = make_model(norm=norm)
    x, y = make_batch()
    soft = 0.7 * F.one_hot(y, len(COUNTS)).double() + 0.3 * F.one_hot(y.flip(0), len(COUNTS)).double()
    x = 0.7 * x + 0.3 * x.flip(0)
    ours, loss = gradient(model, make(model, layers=layers, variant=variant), x, soft, labels=y)
    assert_close(ours, reference_gradient(
        model, x, y, variant, lambda n: layers == '*' or n.startswith('fc'), soft=soft))
    torch.testing.assert_close(loss, F.cross_entropy(model(x), soft))


def test_any_loss_with_sample_values_works():
    x, y = make_batch()
    for name in ('ldam', 'class_balanced', 'balanced_softmax'):
        model = make_model()
        criterion = timm_lt.create_loss(name, class_counts=COUNTS)
        ours, _ = gradient(model, make(model), x, y, criterion)
        assert_close(ours, reference_gradient(
            model, x, y, 'paper', lambda n: n.startswith('fc'), criterion=criterion))


def test_class_weights_divide_by_their_sum_as_the_loss_does():
    model = make_model(norm='group')
    x, y = make_batch()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64))
    closed, _ = gradient(model, make(model), x, y, criterion)
    general, _ = gradient(model, make(model, layers='fc*'), x, y, criterion)
    assert_close(closed, general)


@pytest.mark.parametrize('options', [{'scale': 0.0}, {'perturbed_share': 0.0}, {'start_epoch': 2}])
def test_without_perturbation_it_is_bit_equal_to_its_base(options):
    a, b = make_model(), make_model()
    ours = make(a, **options)
    base = timm.optim.create_optimizer_v2(list(b.parameters()), 'momentum', lr=0.1, weight_decay=1e-3, momentum=0.9)
    for step in range(3):
        x, y = make_batch(step)
        ours.step(BatchClosure(a, nn.CrossEntropyLoss(), x, y))
        base.step(BatchClosure(b, nn.CrossEntropyLoss(), x, y))
    assert_bit_equal(state_of(a), state_of(b))


def test_one_step_is_one_forward_and_one_backward():
    model = make_model()
    calls = []
    model.register_forward_hook(lambda *_: calls.append('forward'))
    model.conv.weight.register_hook(lambda _: calls.append('backward'))
    x, y = make_batch()
    make(model).step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    assert calls == ['forward', 'backward']


@pytest.mark.parametrize('layers', ['classifier', '*'])
@pytest.mark.parametrize('sizes', [[12], [5, 7], [4, 4, 3, 1]])
def test_buffers_after_a_step_are_those_of_plain_forwards(layers, sizes):
    model, plain = make_model(), make_model()
    x, y = make_batch()
    parts = (list(x.split(sizes)), list(y.split(sizes)))
    make(model, layers=layers).step(BatchClosure(model, nn.CrossEntropyLoss(), *parts))
    for part in parts[0]:
        plain(part)
    assert_bit_equal(dict(plain.named_buffers()), dict(model.named_buffers()))
    assert model.fc._forward_pre_hooks == {}


@pytest.mark.parametrize('layers', ['classifier', 'fc*'])
@pytest.mark.parametrize('sizes', [[6, 6], [5, 7], [4, 4, 3, 1]])
def test_micro_batches_equal_one_batch(layers, sizes):
    x, y = make_batch()
    weight = torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    for criterion in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=weight)):
        model = make_model(norm='group')
        whole, loss = gradient(model, make(model, layers=layers), x, y, criterion)
        parts, window_loss = gradient(
            model, make(model, layers=layers), list(x.split(sizes)), list(y.split(sizes)), criterion)
        assert_close(parts, whole)
        torch.testing.assert_close(window_loss, loss)


def test_window_meets_the_same_dropout_in_both_passes():
    model = make_model(norm='group', dropout=0.5)
    x, y = make_batch()
    seen = []
    model.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    optimizer = make(model)
    optimizer.attach(model)
    optimizer._closed._checked = True  # the check runs the classifier once more
    optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), list(x.split(4)), list(y.split(4))))
    assert len(seen) == 6 and all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:]))


def test_statistics_of_a_loss_are_taken_once_per_step():
    x, y = make_batch()
    for parts in ((x, y), (list(x.split(4)), list(y.split(4)))):
        model, plain = make_model(), make_model()
        ours, theirs = (timm_lt.create_loss('gala', class_counts=COUNTS) for _ in range(2))
        optimizer_step(make(model), BatchClosure(model, ours, *parts))
        base = timm.optim.create_optimizer_v2(list(plain.parameters()), 'momentum', lr=0.1)
        optimizer_step(base, BatchClosure(plain, theirs, *parts))
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()):
            torch.testing.assert_close(a, b, msg=name)


def test_clipping_acts_on_the_final_gradient():
    model, other = make_model(), make_model()
    x, y = make_batch()
    optimizer_step(make(model, weight_decay=0), BatchClosure(model, nn.CrossEntropyLoss(), x, y), clip_grad=0.01)
    moved = flat(a - b for a, b in zip(model.parameters(), other.parameters())).norm()
    assert float(moved) == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_loss_and_gradient_are_finite_for_extreme_logits():
    model = make_model(torch.float32)
    with torch.no_grad():
        model.fc.weight.mul_(500)
    x, y = make_batch(dtype=torch.float32)
    gradients, loss = gradient(model, make(model, scale=1e-6), x, y)
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients.values())


def test_resume_copies_and_pickles_continue_bit_equal():
    def steps(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), *make_batch(step)))

    straight = make_model()
    optimizer = make(straight)
    steps(straight, optimizer, 0, 6)
    for how in ('state_dict', 'deepcopy', 'pickle'):
        model = make_model()
        optimizer = make(model)
        steps(model, optimizer, 0, 3)
        if how == 'state_dict':
            saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
            model = make_model()
            model.load_state_dict(weights)
            optimizer = make(model)
            optimizer.load_state_dict(saved)
        elif how == 'deepcopy':
            model, optimizer = copy.deepcopy((model, optimizer))
        else:
            model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
        steps(model, optimizer, 3, 6)
        assert_bit_equal(state_of(model), state_of(straight))


def test_resume_through_accelerate_is_bit_exact_and_the_schedule_reaches_the_base(tmp_path):
    def prepared():
        accelerator = Accelerator(cpu=True)
        model = make_model()
        model, optimizer = accelerator.prepare(model, make(model))
        return accelerator, model, optimizer

    def steps(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.param_groups[0]['lr'] = 0.1 / (step + 1)
            optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), *make_batch(step)))

    accelerator, model, optimizer = prepared()
    steps(model, optimizer, 0, 3)
    accelerator.save_state(str(tmp_path))
    steps(model, optimizer, 3, 5)
    expected = state_of(model)
    accelerator, model, optimizer = prepared()
    accelerator.load_state(str(tmp_path))
    assert optimizer.optimizer.base.param_groups[0]['lr'] == 0.1 / 3
    steps(model, optimizer, 3, 5)
    assert_bit_equal(state_of(model), expected)


def test_timm_builds_it_from_a_module_with_its_groups_and_lookahead():
    model = make_model()
    for name in ('ccsam', 'lookahead_ccsam'):
        optimizer = timm.optim.create_optimizer_v2(
            model, name, lr=0.1, weight_decay=1e-2, class_counts=COUNTS, base='adamw', scale=0.1)
        assert sorted({g['weight_decay'] for g in optimizer.param_groups}) == [0.0, 1e-2]
        before = state_of(model)
        result = optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), *make_batch()))
        assert torch.isfinite(result.loss)
        assert not torch.equal(before['fc.weight'], model.fc.weight)
    assert 'ccsam' in timm.optim.list_optimizers()


def scaler_accelerator(**options):
    accelerator = Accelerator(cpu=True)
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler('cpu', **options)
    return accelerator


@pytest.mark.parametrize('layers', ['classifier', '*'])
def test_gradient_scaler_with_a_changing_scale_equals_no_scaler(layers):
    plain = make_model()
    optimizer = make(plain, layers=layers)
    for step in range(4):
        optimizer_step(optimizer, BatchClosure(plain, nn.CrossEntropyLoss(), *make_batch(step)))
    accelerator = scaler_accelerator(init_scale=2.0 ** 10, growth_interval=1)
    accelerator.autocast = lambda *a, **k: torch.autocast('cpu', enabled=False)
    model = make_model()
    model, optimizer = accelerator.prepare(model, make(model, layers=layers))
    for step in range(4):
        result = optimizer_step(
            optimizer, BatchClosure(model, nn.CrossEntropyLoss(), *make_batch(step), accelerator=accelerator))
        assert not result.skipped
    assert accelerator.scaler.get_scale() == 2.0 ** 14
    assert_close(state_of(accelerator.unwrap_model(model)), state_of(plain), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('where', ['clean', 'perturbed'])
def test_overflow_skips_the_step_and_changes_nothing(where):
    class Overflow(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, output, target):
            self.calls += 1
            values = super().forward(output, target)
            return values * float('inf') if self.calls == (1 if where == 'clean' else 2) else values

    accelerator = scaler_accelerator(init_scale=2.0 ** 8)
    model = make_model(torch.float32)
    model, optimizer = accelerator.prepare(model, make(model))
    before, own = state_of(model), copy.deepcopy(optimizer.state_dict())
    x, y = make_batch(dtype=torch.float32)
    result = optimizer_step(optimizer, BatchClosure(model, Overflow(), x, y, accelerator))
    assert result.skipped
    after = state_of(model)
    assert all(torch.equal(before[k], after[k]) for k in before if 'running' not in k and 'batches' not in k)
    assert repr(optimizer.state_dict()['sharpness_aware']) == repr(own['sharpness_aware'])


def test_bfloat16_autocast_is_close_to_float32():
    accelerator = Accelerator(cpu=True, mixed_precision='no')
    accelerator.autocast = lambda *a, **k: torch.autocast('cpu', dtype=torch.bfloat16)
    model = make_model(torch.float32)
    x, y = make_batch(dtype=torch.float32)
    low, _ = gradient(model, make(model), x, y, accelerator=accelerator)
    full, _ = gradient(model, make(model), x, y)
    a, b = flat(low.values()), flat(full.values())
    assert float((a - b).norm() / b.norm()) < 0.05
    assert all(g.dtype == torch.float32 for g in low.values())


@pytest.mark.parametrize('layers', ['classifier', 'fc*'])
def test_compiled_model_gives_the_same_with_one_graph(layers):
    torch.compiler.reset()
    model, plain = make_model(), make_model()
    frames = []

    def backend(graph, inputs):
        frames.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    ours, theirs = make(model, layers=layers), make(plain, layers=layers)
    for step in range(3):
        x, y = make_batch(step)
        ours.step(BatchClosure(compiled, nn.CrossEntropyLoss(), x, y))
        theirs.step(BatchClosure(plain, nn.CrossEntropyLoss(), x, y))
    assert_close(state_of(model), state_of(plain))
    assert len(frames) == 1
    assert all(h.value is None for h in model.fc._forward_pre_hooks.values())


def test_model_compiled_too_early_is_an_error_that_names_attach():
    torch.compiler.reset()
    model = make_model()
    compiled = torch.compile(model, backend='eager')
    x, y = make_batch()
    compiled(x)
    with pytest.raises(RuntimeError, match='attach'):
        make(model).step(BatchClosure(compiled, nn.CrossEntropyLoss(), x, y))
    torch.compiler.reset()
    model = make_model()
    optimizer, compiled = make(model), torch.compile(model, backend='eager')
    optimizer.attach(compiled)
    compiled(x)
    optimizer.step(BatchClosure(compiled, nn.CrossEntropyLoss(), x, y))


def test_errors_name_what_is_wrong():
    model = make_model()
    x, y = make_batch()
    with pytest.raises(TypeError, match='BatchClosure'):
        make(model).step(lambda: None)
    with pytest.raises(TypeError, match='class_counts'):
        make(model, class_counts=None)
    with pytest.raises(ValueError, match='4 entries'):
        make(model, class_counts=COUNTS[:4]).step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    for bad in ({'scale': -1.0}, {'perturbed_share': 1.5}, {'variant': 'official'}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            make(model, **bad)

    class Doubled(Net):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Doubled().double()
    with pytest.raises(ValueError, match='wildcard'):
        make(model).step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    make(model, layers='fc*').step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
