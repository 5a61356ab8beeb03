"""GSA and GKP on two processes.

GSA with a group missing on one of them and the penalty on equals one process with the joint batch; GKP's groups,
penalty and figures are the same on both, and its snapshots lie on one.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
from paths import HELPERS
from torch.nn.parallel import DistributedDataParallel

WORLD = 2
STEPS = 3


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(12, 1, 6, 6, generator=generator).double(), torch.randint(0, 5, (12,), generator=generator)
    y[:6] = torch.tensor([0, 1, 0, 2, 1, 0])  # the first process never sees group 2
    y[6:] = y[6:].clamp(min=1)
    y[6] = 3
    return x, y


def train(rank, options, norm='group'):
    """Weights after the steps; ``rank`` None is one process with the joint batch."""
    from gsa_cases import Net, make, penalty_of

    from timm_lt.optim import BatchClosure
    torch.manual_seed(0)
    model = Net(norm).double()
    optimizer = make(model, **options)
    optimizer.set_penalty(penalty_of(model).quadratic(), alpha=0.8)
    wrapped = model if rank is None else DistributedDataParallel(model)
    for step in range(STEPS):
        x, y = batch(step)
        if rank is not None:
            x, y = x[rank * 6:rank * 6 + 6], y[rank * 6:rank * 6 + 6]
        optimizer.step(BatchClosure(wrapped, nn.CrossEntropyLoss(), x, y))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gkp_stays_the_same_on_all_processes(rank):
    from gkp_cases import Loader, images, make_gkp, make_trainer

    from timm_lt.optim import BatchClosure

    class Share(Loader):
        """Every second image."""

        def __iter__(self):
            yield from zip(self.x[rank::WORLD].split(8), self.y[rank::WORLD].split(8))

    trainer, gkp = make_trainer(), make_gkp()
    gkp.loader = Share()
    plain = trainer.model
    trainer.model = DistributedDataParallel(plain)
    trainer.accelerator.unwrap_model = lambda model, keep_torch_compile=False: plain
    x, y = images()
    gkp.on_train_start(trainer)
    for epoch in range(4):
        gkp.on_epoch_start(trainer, epoch)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch))[rank::WORLD]
        trainer.optimizer.step(BatchClosure(trainer.model, nn.CrossEntropyLoss(), x[order], y[order]))
        # BatchNorm statistics are the process's own until the next forward pass
        for b in plain.buffers():
            dist.broadcast(b, src=0)
        row = gkp.on_epoch_end(trainer, epoch)
        rows = [None] * WORLD
        dist.all_gather_object(rows, row)
        assert rows[0] == rows[1], rows
    for own in (gkp.groups, trainer.optimizer.groups, *gkp.penalty.curvature, *gkp.penalty.centre):
        other = own.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(own, other)
    assert bool(gkp.bank._snapshots) is (rank == 0) and gkp.bank.is_filled


def run_process():
    from worker import leave
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    for options, norm in (({}, 'group'), ({'weighting': 'equal'}, 'group'), ({}, 'batch'),
                          ({'batchnorm': 'stacked'}, 'batch')):
        weights = train(rank, options, norm)
        other = weights.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(weights, other), f'replicas differ: {options} {norm}'
        if norm == 'group' and rank == 0:
            torch.testing.assert_close(weights, train(None, options, norm), rtol=1e-10, atol=1e-12)
    gkp_stays_the_same_on_all_processes(rank)
    Path(os.environ['GSA_DONE'] + str(rank)).touch()
    leave()


def test_two_processes_equal_one_when_a_group_is_missing_on_a_rank_and_share_one_bank(tmp_path):
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1', 'GSA_DONE': str(tmp_path / 'done'),
        'PYTHONPATH': os.pathsep.join([str(HELPERS), os.environ.get('PYTHONPATH', '')])}
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(WORLD), __file__],
        env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-4000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['done0', 'done1']


if __name__ == '__main__':
    run_process()
