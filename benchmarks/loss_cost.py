"""Cost of each loss as a multiple of plain cross-entropy: of head and loss, and of a whole training step for GALA.

    python benchmarks/loss_cost.py
    python benchmarks/loss_cost.py --class-counts inat2018.json --losses gala --rounds 60

Head and loss: features (B, D) through a linear classifier, the loss, and the backward pass to weights and features.
Each table row is timed in turns with cross-entropy; a number is the median over the rounds, with the smallest and the
largest.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
import torch.nn as nn
from _timing import Ratio, ratios_in_turns

from timm_lt import create_loss, list_losses

VARIANTS = {'gala': [{}, {'variant': 'released'}]}


def exponential_counts(num_classes: int, largest: int = 500, imbalance_ratio: float = 100.0) -> list[int]:
    return [max(1, round(largest * imbalance_ratio ** (-c / max(num_classes - 1, 1)))) for c in range(num_classes)]


def label_of(name: str, options: dict) -> str:
    return name if not options else f'{name} ({", ".join(str(v) for v in options.values())})'


def drawn_targets(counts: list[int], batch: int, device: torch.device) -> torch.Tensor:
    return torch.multinomial(torch.tensor(counts, dtype=torch.float64), batch, replacement=True).to(device)


def criteria(names: list[str], counts: list[int], device: torch.device) -> dict[str, nn.Module]:
    # the second one shows how far the machine's noise reaches
    built = {'cross-entropy': nn.CrossEntropyLoss().to(device), 'cross-entropy again': nn.CrossEntropyLoss().to(device)}
    for name in names:
        for options in VARIANTS.get(name, [{}]):
            built[label_of(name, options)] = create_loss(name, counts, **options).to(device)
    return built


def head_and_loss(
        names: list[str],
        counts: list[int],
        dim: int,
        batch: int,
        rounds: int,
        device: torch.device,
) -> dict[str, Ratio]:
    head = nn.Linear(dim, len(counts)).to(device)
    features = torch.randn(batch, dim, device=device, requires_grad=True)
    target = drawn_targets(counts, batch, device)

    def step_with(criterion: nn.Module):
        def step() -> None:
            head.zero_grad()
            features.grad = None
            criterion(head(features), target).backward()
        return step

    steps = {name: step_with(criterion) for name, criterion in criteria(names, counts, device).items()}
    # each loss beside cross-entropy alone: with many losses in one round the caches would be cold for the baseline too
    return {
        name: ratios_in_turns({'cross-entropy': steps['cross-entropy'], name: step}, 'cross-entropy', rounds)[name]
        for name, step in steps.items() if name != 'cross-entropy'}


def whole_step(
        names: list[str],
        model_name: str,
        counts: list[int],
        batch: int,
        rounds: int,
        device: torch.device,
) -> dict[str, Ratio]:
    model = timm.create_model(model_name, num_classes=len(counts)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch, 3, 32, 32, device=device)
    target = drawn_targets(counts, batch, device)

    def step_with(criterion: nn.Module):
        def step() -> None:
            optimizer.zero_grad()
            criterion(model(images), target).backward()
            optimizer.step()
        return step

    steps = {name: step_with(criterion) for name, criterion in criteria(names, counts, device).items()}
    ratios = ratios_in_turns(steps, 'cross-entropy', rounds)
    ratios.pop('cross-entropy')
    return ratios


def rows(where: str, ratios: dict[str, Ratio]) -> None:
    for name, r in ratios.items():
        print(f'| {where} | {name} | {r.median:.3f} | {r.low:.3f} to {r.high:.3f} | {r.milliseconds:.2f} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--class-counts', type=Path, help='JSON list of images per class; default: exponential counts of several sizes')
    parser.add_argument('--num-classes', type=int, nargs='+', default=[10, 100, 1000, 8142])
    parser.add_argument(
        '--losses', nargs='+', default=list_losses(), help='registered names')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--model', default='resnet32_cifar', help='network of the whole step; "none" to leave it out')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()

    device = torch.device(args.device)
    torch.manual_seed(0)
    sizes = [json.loads(args.class_counts.read_text())] if args.class_counts else [
        exponential_counts(n) for n in args.num_classes]
    print(f'torch {torch.__version__}, {device.type}, {torch.get_num_threads()} thread(s), batch {args.batch_size}\n')
    print('| part | loss | times cross-entropy | smallest to largest | ms |')
    print('| --- | --- | --- | --- | --- |')
    for counts in sizes:
        dim = 64 if len(counts) <= 100 else 2048
        # small heads are quick and noisy: more rounds
        rounds = args.rounds * (10 if len(counts) <= 100 else 1)
        where = f'head and loss, C={len(counts)}, D={dim}'
        rows(where, head_and_loss(args.losses, counts, dim, args.batch_size, rounds, device))
    if args.model != 'none' and 'gala' in args.losses:
        where = f'step of {args.model}, C=100'
        rows(where, whole_step(
            ['gala'], args.model, exponential_counts(100), args.batch_size, max(args.rounds // 2, 3), device))


if __name__ == '__main__':
    main()
