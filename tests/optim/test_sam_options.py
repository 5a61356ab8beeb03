"""Options of the sharpness-aware optimizers, the cheap forms among them, and errors."""

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from sam_reference import (
    CLASS_AWARE,
    COUNTS,
    ETA,
    OWN,
    assert_bit_equal,
    flat,
    make_batch,
    make_model,
    make_optimizer,
    reference_gradient,
    state_of,
)

from timm_lt.optim import BatchClosure, optimizer_step


def test_every_and_start_epoch_take_plain_steps_between():
    x, y = make_batch()
    for options, perturbed in ({'every': 3}, [0, 3, 6]), ({'start_epoch': 4}, [4, 5, 6]):
        model = make_model('group')
        optimizer = make_optimizer(model, 'sam', **options)
        forwards = []
        model.register_forward_hook(lambda *_, forwards=forwards: forwards.append(1))
        seen = []
        for step in range(7):
            optimizer.set_epoch(step, 7)
            optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
            if len(forwards) == 2:
                seen.append(step)
            forwards.clear()
        assert seen == perturbed


@pytest.mark.parametrize('options, moved', [
    ({'layers': 'classifier'}, {'fc.weight', 'fc.bias'}),
    ({'layers': ['conv*', 'norm.weight']}, {'conv.weight', 'conv.bias', 'norm.weight'}),
    ({'exclude_norm_bias': True}, {'conv.weight', 'fc.weight'}),
])
@pytest.mark.parametrize('name', ['sam', 'imbsam'])
def test_only_chosen_layers_are_perturbed_and_their_norm_is_rho(name, options, moved):
    x, y = make_batch()
    model = make_model('batch')
    before, seen = state_of(model), []

    class Watching(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            seen.append({k: (p - before[k]).detach() for k, p in model.named_parameters()})
            return super().forward(logits, target)

    optimizer = make_optimizer(model, name, **options)
    optimizer.compute_grads(BatchClosure(model, Watching(), x, y))
    assert {k for k, eps in seen[-1].items() if eps.abs().max() > 0} == moved
    torch.testing.assert_close(flat(seen[-1].values()).norm().item(), 0.1, rtol=1e-6, atol=0)


def test_rho_schedules_move_the_radius_over_the_epochs():
    x, y = make_batch()
    expected = {'constant': [0.2, 0.2, 0.2], 'linear': [0.2, 0.15, 0.1], 'cosine': [0.2, 0.15, 0.1],
                'step': [0.2, 0.1, 0.1]}
    for schedule, radii in expected.items():
        model = make_model('group')
        rho_epoch = 1 if schedule == 'step' else None
        optimizer = make_optimizer(
            model, 'sam', rho=0.2, rho_schedule=schedule, rho_end=0.5, rho_epoch=rho_epoch, lr=0.0)
        for epoch, radius in enumerate(radii):
            optimizer.set_epoch(epoch, 3)
            before, seen = flat(model.parameters()), []

            class Watching(nn.CrossEntropyLoss):
                def forward(self, logits, target):
                    seen.append((flat(model.parameters()) - before).norm().item())  # noqa: B023
                    return super().forward(logits, target)

            optimizer.step(BatchClosure(model, Watching(), x, y))
            assert seen[1] == pytest.approx(radius)


@pytest.mark.parametrize('options', [{'rho_schedule': 'step'}, {'rho_epoch': 3}])
def test_step_schedule_and_its_epoch_go_together(options):
    with pytest.raises(ValueError, match='go together'):
        make_optimizer(make_model(), 'sam', **options)


def test_ssesam_switches_after_its_share_of_the_epochs():
    optimizer = make_optimizer(make_model(), 'ssesam', stage=0.7)
    switched = []
    for epoch in range(10):
        optimizer.set_epoch(epoch, 10)
        switched.append(optimizer.radii() == [0.0, 0.15])
    assert switched == [False] * 7 + [True] * 3


def forwards_of_a_step(name, norm, **options):
    model = make_model(norm)
    sizes, training = [], []
    model.norm.register_forward_hook(lambda m, i, o: sizes.append(len(o)) or training.append(m.training))
    x, y = make_batch()
    optimizer, closure = make_optimizer(model, name, **options), BatchClosure(model, nn.CrossEntropyLoss(), x, y)
    optimizer.compute_grads(closure)
    sizes.clear(), training.clear()  # the first step also tries whether samples meet in the network
    optimizer.compute_grads(closure)
    return sizes, training, int((torch.tensor(COUNTS)[y] < ETA).sum())


def test_batchnorm_modes_are_what_they_say():
    sizes, training, tail = forwards_of_a_step('imbsam', 'batch')
    assert (sizes, training) == ([12, 12], [True, True])
    sizes, training, tail = forwards_of_a_step('ssesam', 'batch', batchnorm='stacked')
    assert (sizes, training) == ([12, 12], [True, True])
    sizes, _, tail = forwards_of_a_step('imbsam', 'group')
    assert sizes == [12 - tail, tail, tail]
    sizes, _, tail = forwards_of_a_step('ssesam', 'group')
    assert sizes == [12 - tail, tail, 12 - tail, tail]


@pytest.mark.parametrize('mode', ['stacked', 'exact_ascent'])
@pytest.mark.parametrize('name', ['imbsam', 'ssesam'])
def test_batchnorm_modes_are_exact_without_batchnorm_and_keep_buffers_with_it(name, mode):
    x, y = make_batch()
    model = make_model('group')
    make_optimizer(model, name, batchnorm=mode).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    expected = reference_gradient(model, name, x, y, OWN[name])
    torch.testing.assert_close(flat(p.grad for p in model.parameters()), flat(expected.values()), rtol=1e-9, atol=1e-12)

    model, plain = make_model('batch'), make_model('batch')
    make_optimizer(model, name, batchnorm=mode).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    plain(x)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-12, atol=0)


def test_stacked_gradient_is_that_of_the_samples_under_their_own_parts_weights():
    # one layer before BatchNorm: the stacked forward by hand, at the perturbations that the optimizer chose
    x, y = make_batch()
    tail = torch.tensor(COUNTS)[y] < ETA
    model, seen = make_model('batch'), {}
    optimizer = make_optimizer(model, 'ssesam', batchnorm='stacked')
    perturb = optimizer.perturb

    def watching(parts):
        perturb(parts)
        for part in parts:
            names = {id(p): k for k, p in model.named_parameters()}
            seen[part.index] = {names[id(p)]: p.detach() + e for p, e in zip(part.params, part.grads)}

    optimizer.perturb = watching
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    weights = [{k: v.clone().requires_grad_() for k, v in seen[part].items()} for part in (0, 1)]
    masks = [~tail, tail]
    clean = F.conv2d(x, model.conv.weight, model.conv.bias, padding=1).detach()
    dims = {'dim': (0, 2, 3), 'keepdim': True}
    hidden = torch.zeros(12, 4, 5, 5, dtype=torch.float64)
    for w, m in zip(weights, masks):
        hidden = hidden.index_put((m,), F.conv2d(x[m], w['conv.weight'], w['conv.bias'], padding=1))
    # statistics: of the whole batch before, moved by what the perturbation did to the part's own samples
    std, value = torch.zeros_like(hidden), torch.zeros_like(hidden)
    for m in masks:
        own, before = hidden.detach()[m], clean[m]
        mean = clean.mean(**dims) + own.mean(**dims) - before.mean(**dims)
        var = clean.var(correction=0, **dims) + own.var(correction=0, **dims) - before.var(correction=0, **dims)
        std[m] = (var + 1e-5).sqrt()
        value[m] = (own - mean) / std[m]
    value.requires_grad_()
    loss = 0
    for w, m in zip(weights, masks):
        z = torch.tanh(value[m] * w['norm.weight'][:, None, None] + w['norm.bias'][:, None, None]).mean((2, 3))
        loss = loss + F.cross_entropy(F.linear(z, w['fc.weight'], w['fc.bias']), y[m], reduction='sum') / 12
    loss.backward()
    g, value = value.grad, value.detach()
    hidden.backward((g - g.mean(**dims) - value * (g * value).mean(**dims)) / std)
    for k, p in model.named_parameters():
        torch.testing.assert_close(p.grad, weights[0][k].grad + weights[1][k].grad, rtol=1e-9, atol=1e-12)


# Errors


def test_errors_name_what_is_wrong():
    model = make_model()
    x, y = make_batch()
    params = list(model.parameters())
    create = timm.optim.create_optimizer_v2
    with pytest.raises(ValueError, match='rho must be'):
        create(params, 'sam', rho=-0.1)
    for name in CLASS_AWARE:
        with pytest.raises(TypeError, match='class_counts is missing'):
            create(params, name)
        with pytest.raises(TypeError, match='BatchClosure'):
            make_optimizer(model, name).step(lambda: torch.zeros(()))
        with pytest.raises(ValueError, match='class_counts has 3 entries'):
            make_optimizer(model, name, class_counts=[30, 20, 1]).step(
                BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        for counts in (COUNTS[:-1], [*COUNTS, 1]):
            with pytest.raises(ValueError, match='model gives 6 logits'):
                make_optimizer(model, name, class_counts=counts).step(
                    BatchClosure(model, nn.CrossEntropyLoss(), x[y < 5], y[y < 5]))
    with pytest.raises(TypeError, match="no option 'rhoo'. Did you mean 'rho'"):
        create(params, 'sam', rhoo=0.1)
    with pytest.raises(ValueError, match='sharpness-aware itself'):
        create(params, 'sam', base='asam')
    with pytest.raises(ValueError, match="Did you mean .*'adamw'"):
        create(params, 'sam', base='adamww')
    with pytest.raises(ValueError, match='second-order'):
        create(params, 'sam', base='adahessian')
    closure = BatchClosure(model, nn.CrossEntropyLoss(), x, y)
    with torch.autocast('cpu'), pytest.raises(RuntimeError, match='inside torch.autocast'):
        make_optimizer(model, 'sam').step(closure)
    with pytest.raises(ValueError, match='number of epochs'):
        make_optimizer(model, 'sam', rho_schedule='linear').step(closure)
    with pytest.raises(TypeError, match='attach'):
        make_optimizer(model, 'sam', layers='fc*').step(lambda: F.cross_entropy(model(x), y).backward())
    with pytest.raises(ValueError, match='needs every sample in one part'):
        make_optimizer(model, 'focalsam', batchnorm='stacked').step(closure)
    with pytest.raises(ValueError, match='batchnorm must be one of'):
        make_optimizer(model, 'sam', batchnorm='exact')
    for kind in ('FullyShardedDataParallel', 'DeepSpeedEngine'):
        wrapped = type(kind, (nn.Sequential,), {})(make_model())
        with pytest.raises(ValueError, match=f'{kind} is not supported; use fully_shard'):
            BatchClosure(wrapped, nn.CrossEntropyLoss(), x, y)
    with pytest.raises(ValueError, match='same number of micro-batches'):
        BatchClosure(model, nn.CrossEntropyLoss(), [x, x], [y])


def plain_backward(model):
    x, y = make_batch()
    F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize('name', OWN)
def test_step_after_a_plain_backward_is_refused_and_changes_nothing(name):
    model = make_model()
    optimizer = make_optimizer(model, name)
    before = state_of(model)
    optimizer.zero_grad()
    plain_backward(model)
    with pytest.raises(RuntimeError, match='optimizer_step.* or pass allow_plain=True'):
        optimizer.step()
    assert all(torch.equal(before[k], p) for k, p in model.named_parameters())
    optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), *make_batch()))  # goes on as usual
    plain_backward(model)
    with pytest.raises(RuntimeError, match='allow_plain'):
        optimizer.step()


def test_plain_steps_that_are_allowed_are_those_of_the_base():
    model, plain = make_model(), make_model()
    optimizer = make_optimizer(model, 'sam', allow_plain=True)
    base = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(2):
        for m, o in ((model, optimizer), (plain, base)):
            o.zero_grad()
            plain_backward(m)
            o.step()
    assert_bit_equal(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize('options', [{'every': 2}, {'start_epoch': 1}], ids=str)
def test_steps_that_an_option_leaves_plain_need_no_permission(options):
    model = make_model()
    optimizer = make_optimizer(model, 'sam', **options)
    for _ in range(2):
        optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), *make_batch()))
        optimizer.step()
    assert optimizer.state_dict()['sharpness_aware']['step'] == 2
