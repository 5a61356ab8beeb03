#!/usr/bin/env python3
"""Cost of fine-tuning methods: trained parameters, optimizer state, memory and time of a step.

    python benchmarks/finetune_cost.py [--network vit_tiny_patch16_224] [--batch 8] [--rounds 5] [--output FOLDER]

One row for each method, with and without gradient checkpointing, and two rows with SAM. Every row starts from the same
random network with a classifier of 100 classes. ``optimizer``: bytes of AdamW's state after a step. ``memory``: bytes
that a step allocates at its peak, beyond weights and optimizer state. ``time``: of a step as a multiple of ``full``,
measured in turns. Written to ``--output``: ``cost.md``.
"""

import argparse
from pathlib import Path

import timm_lt  # noqa: F401  first: torch's threads then sleep while they wait

# isort: split

import timm
import torch
import torch.nn as nn
from _report import Report
from _timing import peak_memory, ratios_in_turns

from timm_lt import finetune
from timm_lt.optim import BatchClosure, optimizer_step

METHODS = ('full', 'head', 'bias', 'norm', 'lora', 'adaptformer', 'blocks:2')
MEBI = 2 ** 20


class Step:
    """Optimizer steps of a network under one fine-tuning method.

    Args:
        network: timm's name.
        method: Fine-tuning method.
        batch: Images of a step.
        checkpointing: Compute activations a second time in place of keeping them.
        opt: Optimizer; 'sam' perturbs the trained parameters.
    """

    def __init__(self, network: str, method: str, batch: int, checkpointing: bool = False, opt: str = 'adamw') -> None:
        torch.manual_seed(0)
        self.model = finetune.apply(timm.create_model(network, num_classes=100), method).train()
        self.model.set_grad_checkpointing(checkpointing)
        base = {'base': 'adamw'} if opt == 'sam' else {}
        self.optimizer = timm.optim.create_optimizer_v2(self.model, opt, lr=1e-4, weight_decay=0.01, **base)
        self.images = torch.randn(batch, *self.model.default_cfg['input_size'])
        self.target = torch.arange(batch) % 100

    def __call__(self) -> None:
        closure = BatchClosure(self.model, nn.CrossEntropyLoss(), self.images, self.target)
        optimizer_step(self.optimizer, closure)

    @property
    def tuned(self) -> int:
        return sum(p.numel() for p in finetune.tuned_parameters(self.model).values())

    @property
    def state_bytes(self) -> int:
        tensors = (v for state in self.optimizer.state.values() for v in state.values() if torch.is_tensor(v))
        return sum(v.numel() * v.element_size() for v in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='vit_tiny_patch16_224')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--output', type=Path)
    args = parser.parse_args()
    steps = {}
    for checkpointing, suffix in ((False, ''), (True, ', checkpointing')):
        steps |= {method + suffix: Step(args.network, method, args.batch, checkpointing) for method in METHODS}
    steps |= {f'{method} + SAM': Step(args.network, method, args.batch, opt='sam') for method in ('full', 'lora')}
    ratios = ratios_in_turns(steps, 'full', args.rounds)
    report = Report()
    report.line(f'\n{args.network}, batch {args.batch}, AdamW, 100 classes, random weights\n')
    report.line('| method | trained parameters | optimizer state, MiB | memory of a step, MiB | time, full = 1 |')
    report.line('| --- | ---: | ---: | ---: | ---: |')
    for name, step in steps.items():
        memory = peak_memory(step, torch.device('cpu'))
        report.line(f'| {name} | {step.tuned:,} | {step.state_bytes / MEBI:.2f} | {memory / MEBI:.0f} | '
                    f'{ratios[name].median:.2f} |')
    report.write(args.output and args.output / 'cost.md')


if __name__ == '__main__':
    main()
