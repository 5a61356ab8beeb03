"""Cost of GSA as a multiple of one plain step, and how faithful its approximations are.

    python benchmarks/gsa_cost.py [--model resnet32_cifar] [--size 32] [--batch 128] [--groups 1 2 4 8] [--device cpu]

Every way of treating BatchNorm stands beside a plain step of the same network in the same state, timed in turns.
``published`` is the structure of the released code, written here with plain loops over groups and parameters. Fidelity
is the cosine between (gradient of the approximation - plain gradient) and (exact gradient - plain gradient).
"""

import argparse
import copy

import timm
import torch
import torch.nn.functional as F
from _timing import ratios_in_turns

import timm_lt  # noqa: F401  registers networks and optimizers
from timm_lt.data import long_tailed_counts
from timm_lt.gkp import QuadraticPenalty
from timm_lt.optim import BatchClosure


def published_step(model, groups, num_groups, samples, x, y, optimizer, buffers):
    """One backward for all groups, a loop over groups and parameters, one joint perturbation, one further pass."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    group = groups[y]
    losses = F.cross_entropy(model(x), y, reduction='none')
    optimizer.zero_grad()
    sum(losses[group == k].mean() for k in range(num_groups) if bool((group == k).any())).backward()
    length = torch.norm(torch.stack([p.detach().norm() for p in parameters]))
    size = sum(p.numel() for p in parameters)
    ascent = [torch.zeros_like(p) for p in parameters]
    for k in range(num_groups):
        share = float((group == k).float().mean())
        if share == 0:
            continue
        for i, p in enumerate(parameters):
            if (k, i) in buffers:
                q = p.grad.clone()
                p.grad.sub_(buffers[k, i])
                buffers[k, i] = buffers[k, i] * 0.9 + q * 0.1
            else:
                buffers[k, i] = p.grad.clone()
        norm = torch.norm(torch.stack([(p.detach().abs() * p.grad).norm() for p in parameters])) + 1e-12
        radius = 0.1 * (length / (2 * norm)).sqrt() * (size * max(samples[k] - 1, 1)) ** -0.25
        radius = float(radius.clamp(2e-3, 3e-3))
        for e, p in zip(ascent, parameters):
            e.add_(p.detach().square() * p.grad * (share * size ** 0.5 * radius / norm))
    with torch.no_grad():
        for p, e in zip(parameters, ascent):
            p.add_(e)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for p, e in zip(parameters, ascent):
            p.sub_(e)
    optimizer.step()


def batch_norm(model, training):
    for m in model.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            m.training = training


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='resnet32_cifar')
    parser.add_argument('--size', type=int, default=32)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--groups', type=int, nargs='+', default=[1, 2, 4, 8, 16])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(args.device)
    counts = long_tailed_counts(500, 100, 100)
    model = timm.create_model(args.model, num_classes=100).to(device)
    label_chance = counts.double() / counts.sum()
    pattern = torch.randn(100, 3, args.size, args.size)

    def batch():
        y = torch.multinomial(label_chance, args.batch, replacement=True)
        return (pattern[y] * 0.5 + torch.randn(args.batch, 3, args.size, args.size)).to(device), y.to(device)

    x, y = batch()

    def make(model, **options):
        return timm.optim.create_optimizer_v2(
            model, 'gsa', lr=0.01, momentum=0.9, class_counts=counts, **options)

    def closure(model, x=x, y=y):
        return BatchClosure(model, torch.nn.CrossEntropyLoss(), x, y)

    def stepper(training, kind, groups=1):
        own = copy.deepcopy(model)
        own.train()
        batch_norm(own, training)
        if kind == 'plain' or kind == 'penalty':
            optimizer = timm.optim.create_optimizer_v2(own, 'momentum', lr=0.01, momentum=0.9)
            penalty = QuadraticPenalty(list(own.parameters()))
            penalty.add(1.0, [p.detach().square() for p in own.parameters()], [p.detach() for p in own.parameters()])

            def step():
                closure(own)()
                if kind == 'penalty':
                    gradients = [p.grad for p in own.parameters()]
                    torch._foreach_mul_(gradients, 0.8)
                    torch._foreach_add_(gradients, penalty.gradients(), alpha=0.2)
                optimizer.step()
            return step
        optimizer = make(own, num_groups=groups, **({'variant': 'released'} if kind == 'released' else {
            'batchnorm': kind} if kind in ('batch', 'exact_ascent', 'stacked', 'group') else {}))
        if kind == 'published':
            base, buffers = timm.optim.create_optimizer_v2(own, 'momentum', lr=0.01, momentum=0.9), {}
            number, samples = optimizer.groups.to(device), optimizer.samples_of_group
            return lambda: published_step(own, number, groups, samples, x, y, base, buffers)
        return lambda: optimizer.step(closure(own))

    print('G     ' + ''.join(f'{name:>12}' for name in (
        'published', 'released', 'exact', 'ex. ascent', 'stacked', 'group', 'uncoupled', 'penalty', 'plain ms')))
    for groups in args.groups:
        functions = {'plain': stepper(True, 'plain')}
        for kind in ('published', 'released', 'batch', 'exact_ascent', 'stacked', 'group', 'penalty'):
            functions[kind] = stepper(True, kind, groups)
        result = ratios_in_turns(functions, 'plain', args.rounds)
        uncoupled = ratios_in_turns(
            {'plain': stepper(False, 'plain'), 'gsa': stepper(False, 'uncoupled', groups)}, 'plain', args.rounds)
        row = [result[k].median for k in ('published', 'released', 'batch', 'exact_ascent', 'stacked', 'group')]
        row += [uncoupled['gsa'].median, result['penalty'].median - 1, result['plain'].milliseconds]
        print(f'{groups:<6}' + ''.join(f'{value:>12.3f}' for value in row), flush=True)

    print('\nFidelity of the effect, by number of groups (size quantiles), on long-tailed and on balanced batches')
    for checkpoint in range(2):
        optimizer = timm.optim.create_optimizer_v2(model, 'momentum', lr=0.05, momentum=0.9)
        model.train()
        for _ in range(10):
            closure(model, *batch())()
            optimizer.step()
        for groups in [g for g in args.groups if g > 1]:
            for labels in ('long-tailed', 'balanced'):
                found = {'exact_ascent': [], 'stacked': [], 'group': [], 'frozen': []}
                for _ in range(2):
                    data = batch() if labels == 'long-tailed' else None
                    if data is None:
                        target = torch.randint(0, 100, (args.batch,))
                        image = pattern[target] * 0.5 + torch.randn(args.batch, 3, args.size, args.size)
                        data = image.to(device), target.to(device)
                    own = copy.deepcopy(model)
                    closure(own, *data)()
                    plain = flat_gradient(own)
                    effect = {}
                    for kind in ('batch', *found):
                        own = copy.deepcopy(model)
                        make(own, num_groups=groups, batchnorm=kind).compute_grads(closure(own, *data))
                        effect[kind] = flat_gradient(own) - plain
                    for kind, values in found.items():
                        values.append(float(F.cosine_similarity(effect[kind], effect['batch'], dim=0)))
                print(f'{10 * checkpoint + 10} steps, G={groups}, {labels}: ' + ', '.join(
                    f'{kind} {min(v):.2f} to {max(v):.2f}' for kind, v in found.items()), flush=True)


if __name__ == '__main__':
    main()
