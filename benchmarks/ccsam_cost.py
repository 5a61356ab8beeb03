"""Cost of CC-SAM: the classifier alone and whole steps, as multiples of a plain step, measured in turns.

python benchmarks/ccsam_cost.py [--rounds 15] [--device cpu] [--loop]
"""

import argparse
import math

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from _timing import ratios_in_turns

import timm_lt
from timm_lt.optim import BatchClosure
from timm_lt.two_stage import classifier_inputs, create_stage2

HEADS = ((10, 64), (100, 64), (1000, 2048), (8142, 2048))


def counts_of(num_classes, ratio=100, largest=500):
    return [max(int(largest * ratio ** (-c / (num_classes - 1))), 1) for c in range(num_classes)]


def published_loss(head, features, labels, counts, scale=1e-6, share=0.5):
    """The structure of the published step: one class after the other."""
    clean = F.cross_entropy(head(features), labels)
    tensors = list(head.parameters())
    k = sum(t.numel() for t in tensors)
    norm = torch.sqrt(sum(t.detach().square().sum() for t in tensors))
    perturbed = 0
    for c in labels.unique().tolist():
        rows = labels == c
        loss = F.cross_entropy(head(features[rows]), labels[rows])
        gradients = torch.autograd.grad(loss, tensors, retain_graph=True)
        moved = []
        for t, g in zip(tensors, gradients):
            rho = (norm / (2 * g.norm())).sqrt() * (k * max(counts[c] - 1, 1)) ** -0.25
            moved.append(t + scale * math.sqrt(k) * rho * g / g.norm())
        perturbed = perturbed + F.cross_entropy(F.linear(features[rows], *moved), labels[rows], reduction='sum')
    return (1 - share) * clean + share * perturbed / len(labels)


class HeadOnly(nn.Module):
    """A classifier on features that want a gradient, as those of a backbone do."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.fc = nn.Linear(dim, num_classes)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(x)


def head_alone(num_classes, dim, batch, rounds, device, loop):
    model = HeadOnly(dim, num_classes).to(device)
    counts = counts_of(num_classes)
    features = torch.randn(batch, dim, device=device, requires_grad=True)
    # labels as a long-tailed loader gives them
    labels = torch.multinomial(torch.tensor(counts, dtype=torch.float), batch, replacement=True).to(device)
    criterion = nn.CrossEntropyLoss()
    closure = BatchClosure(model, criterion, features, labels)
    ours = timm.optim.create_optimizer_v2(model.parameters(), 'ccsam', lr=1e-6, class_counts=counts)

    def published():
        closure.zero_grad()
        published_loss(model.fc, features, labels, counts).backward()

    functions = {'plain': closure, 'closed form': lambda: ours.compute_grads(closure)}
    if loop:
        functions['loop over classes'] = published
    return ratios_in_turns(functions, 'plain', rounds)


def whole_step(model_name, size, num_classes, batch, rounds, device, loop):
    counts = counts_of(num_classes)
    models = [timm.create_model(model_name, num_classes=num_classes).to(device).train() for _ in range(3)]
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.multinomial(torch.tensor(counts, dtype=torch.float), batch, replacement=True).to(device)
    criterion = nn.CrossEntropyLoss()
    closures = [BatchClosure(m, criterion, images, labels) for m in models]
    plain = timm.optim.create_optimizer_v2(models[0], 'momentum', lr=1e-4)
    ccsam = timm.optim.create_optimizer_v2(models[1], 'ccsam', lr=1e-4, class_counts=counts)
    looped = timm.optim.create_optimizer_v2(models[2], 'momentum', lr=1e-4)

    def published():
        closures[2].zero_grad()
        features = models[2].forward_head(models[2].forward_features(images), pre_logits=True)
        published_loss(models[2].get_classifier(), features, labels, counts).backward()
        looped.step()

    functions = {'plain': lambda: plain.step(closures[0]), 'ccsam': lambda: ccsam.step(closures[1])}
    if loop:
        functions['loop over classes'] = published
    return ratios_in_turns(functions, 'plain', rounds)


def second_stage(model_name, size, num_classes, batch, rounds, device):
    """A step of the second stage with images, against one of cRT: the same head under plain cross-entropy."""
    counts = counts_of(num_classes)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(num_classes, (batch,), device=device)
    criterion = nn.CrossEntropyLoss()
    functions = {}
    for name in ('crt', 'ccsam'):
        model = timm.create_model(model_name, num_classes=num_classes).to(device)
        method = create_stage2(name, counts)
        method.prepare(model)
        method.to(device)
        optimizer = torch.optim.SGD(method.param_groups(), lr=1e-4)

        def step(model=model, method=method, optimizer=optimizer):
            optimizer.zero_grad()
            method(classifier_inputs(model, images), labels, criterion, 0.5).backward()
            optimizer.step()

        functions[name] = step
    return ratios_in_turns(functions, 'crt', rounds)


def show(title, result):
    print(title)
    for name, ratio in result.items():
        print(f'  {name:18} {ratio.median:7.3f}  ({ratio.low:.3f} to {ratio.high:.3f})  {ratio.milliseconds:9.3f} ms')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--model', default='resnet32_cifar')
    parser.add_argument('--img-size', type=int, default=32)
    parser.add_argument('--heads', type=int, nargs='*', default=[c for c, _ in HEADS], help='numbers of classes')
    parser.add_argument('--loop', action='store_true', help='time the loop over classes too; minutes at 8142 classes')
    args = parser.parse_args()
    if args.device == 'cpu':
        torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f'timm_lt {timm_lt.__version__}, torch {torch.__version__}, {args.device}, {args.rounds} rounds')
    for num_classes, dim in HEADS:
        if num_classes in args.heads:
            show(f'head alone, C = {num_classes}, D = {dim}, batch 128',
                 head_alone(num_classes, dim, 128, args.rounds, args.device, args.loop))
    for num_classes in (10, 100):
        show(f'whole step, {args.model}, C = {num_classes}, batch 128',
             whole_step(args.model, args.img_size, num_classes, 128, args.rounds, args.device, args.loop))
    show(f'second stage with images, {args.model}, C = 100, batch 128',
         second_stage(args.model, args.img_size, 100, 128, args.rounds, args.device))


if __name__ == '__main__':
    main()
