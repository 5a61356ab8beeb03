"""Cost of the sharpness-aware optimizers as multiples of one plain step of the same base, model and batch.

    python benchmarks/optimizer_cost.py [--model resnet32_cifar resnet50] [--rounds 7] [--threads 1] [--device cpu]

All optimizers are timed in turns in one run. Labels are long-tailed: 15% of the batch are tail samples. ``norm`` is
'batch' (BatchNorm in training mode), 'group' (GroupNorm in its place) or 'frozen' (BatchNorm in evaluation mode). On a
GPU the peak memory is reported too, beyond that of the base, in copies of the parameters.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn as nn

import timm_lt  # noqa: F401  registers the optimizers
from timm_lt.optim import BatchClosure

sys.path.insert(0, str(Path(__file__).parent))
from _timing import ratios_in_turns

SETTINGS = {'resnet32_cifar': (128, 32), 'resnet50': (32, 64)}
ETA = 100
# name: optimizer, options, epoch of 10
METHODS = {
    'momentum': ('momentum', {}, 0),
    'sam': ('sam', {}, 0),
    'asam': ('asam', {}, 0),
    'imbsam': ('imbsam', {'eta': ETA}, 0),
    'imbsam, no tail': ('imbsam', {'eta': 0}, 0),
    'ssesam, first stage': ('ssesam', {'eta': ETA}, 0),
    'ssesam, second stage': ('ssesam', {'eta': ETA}, 9),
    'focalsam': ('focalsam', {}, 0),
    'imbsam, stacked': ('imbsam', {'eta': ETA, 'batchnorm': 'stacked'}, 0),
    'ssesam, stacked': ('ssesam', {'eta': ETA, 'batchnorm': 'stacked'}, 0),
    'imbsam, frozen': ('imbsam', {'eta': ETA, 'batchnorm': 'frozen'}, 0),
    'ssesam, frozen': ('ssesam', {'eta': ETA, 'batchnorm': 'frozen'}, 0),
}


def group_norm(module: nn.Module) -> nn.Module:
    """GroupNorm in the place of every BatchNorm; activations inside it stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            layers = [nn.GroupNorm(min(8, child.num_features), child.num_features)]
            layers += [m for m in (getattr(child, 'drop', None), getattr(child, 'act', None)) if m is not None]
            setattr(module, name, nn.Sequential(*layers))
        else:
            group_norm(child)
    return module


def build(name: str, norm: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=100)
    if norm == 'group':
        group_norm(model)
    model = model.to(device).train()
    if norm == 'frozen':
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
    return model


def make_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, method: tuple) -> Callable[[], object]:
    name, options, epoch = method
    if name not in ('momentum', 'sam', 'asam'):
        options = {**options, 'class_counts': [500] * 50 + [20] * 50}
    # lr 0: the weights stay, so that every call does the same work
    optimizer = timm.optim.create_optimizer_v2(list(model.parameters()), name, lr=0.0, weight_decay=5e-4, **options)
    if hasattr(optimizer, 'set_epoch'):
        optimizer.set_epoch(epoch, 10)
    criterion = nn.CrossEntropyLoss()
    return lambda: optimizer.step(BatchClosure(model, criterion, x, y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', nargs='+', default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument('--norm', nargs='+', default=['batch', 'group', 'frozen'], choices=['batch', 'group', 'frozen'])
    parser.add_argument('--method', nargs='+', default=list(METHODS), choices=list(METHODS))
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for model_name in args.model:
        batch, size = SETTINGS[model_name]
        for norm in args.norm:
            model = build(model_name, norm, args.device)
            x = torch.randn(batch, 3, size, size, device=args.device)
            tail = round(0.15 * batch)
            y = torch.cat([torch.randint(50, (batch - tail,)), torch.randint(50, 100, (tail,))])
            y = y[torch.randperm(batch)].to(args.device)
            methods = {k: METHODS[k] for k in dict.fromkeys(['momentum', *args.method])}
            if norm != 'batch':
                methods = {k: v for k, v in methods.items() if 'batchnorm' not in v[1]}
            steps = {k: make_step(model, x, y, v) for k, v in methods.items()}
            memory = peak_copies(model, x, y, methods) if args.device != 'cpu' else {}
            ratios = ratios_in_turns(steps, 'momentum', args.rounds)
            sys.stdout.write(f'\n{model_name}, batch {batch}, {size}x{size}, norm {norm}\n')
            for k, r in ratios.items():
                extra = f'   {memory[k]:.2f} copies of the parameters more' if memory else ''
                sys.stdout.write(
                    f'  {k:24s} {r.median:5.2f}  ({r.low:.2f} to {r.high:.2f})  {r.milliseconds:8.1f} ms{extra}\n')
            sys.stdout.flush()


def peak_copies(model: nn.Module, x: torch.Tensor, y: torch.Tensor, methods: dict) -> dict[str, float]:
    """Peak GPU memory of a step beyond that of the plain one, in copies of the parameters."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    peaks = {}
    for name, method in methods.items():
        step = make_step(model, x, y, method)
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        peaks[name] = torch.cuda.max_memory_allocated()
        del step
        torch.cuda.empty_cache()
    return {name: (peak - peaks['momentum']) / size for name, peak in peaks.items()}


if __name__ == '__main__':
    main()
