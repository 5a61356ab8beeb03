"""CC-SAM on two processes, a class missing on one of them: equal to one process with the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
from paths import HELPERS
from torch.nn.parallel import DistributedDataParallel

SETTINGS = (
    {'layers': 'classifier'}, {'layers': 'classifier', 'variant': 'released'}, {'layers': 'fc*'}, {'head': 'cosine'},
    {'layers': 'classifier', 'micro': True}, {'layers': 'classifier', 'mixed': True}, {'layers': '*', 'mixed': True},
)


def train(rank, setting, norm='group', steps=3):
    """Weights after the steps; ``rank`` None is one process with the joint batch."""
    from ccsam_cases import COUNTS, make, make_batch, make_model

    from timm_lt.optim import BatchClosure
    setting = dict(setting)
    micro, mixed = setting.pop('micro', False), setting.pop('mixed', False)
    model = make_model(norm=norm, head=setting.pop('head', 'linear'))
    optimizer = make(model, **setting)
    wrapped = model if rank is None else DistributedDataParallel(model)
    for step in range(steps):
        x, y = make_batch(step)
        y[:7] = y[:7].clamp(max=2)  # the first process never sees the classes 3 and 4
        target = y
        if mixed:
            target = 0.8 * nn.functional.one_hot(y, len(COUNTS)).double() + 0.2 / len(COUNTS)
        if rank is not None:  # 7 and 5 images
            x, y, target = (t[7 * rank:7 + 5 * rank] for t in (x, y, target))
        if micro:
            x, y, target = ([t[:2], t[2:]] for t in (x, y, target))
        optimizer.step(BatchClosure(wrapped, nn.CrossEntropyLoss(), x, target, labels=y))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def overflow_on_one_process(rank):
    """A step whose loss overflows on the last process only is skipped on both."""
    from accelerate import Accelerator
    from ccsam_cases import make, make_batch, make_model

    from timm_lt.optim import BatchClosure, optimizer_step
    accelerator = Accelerator(cpu=True)
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=2.0 ** 8)
    model = make_model(torch.float32, norm='group')
    model, optimizer = accelerator.prepare(model, make(model))
    before = [p.clone() for p in model.parameters()]
    x, y = make_batch(dtype=torch.float32)
    if rank == 1:
        x[0, 0, 0, 0] = float('inf')
    result = optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), x, y, accelerator))
    assert result.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def sharded(setting):
    """FSDP2 on both processes follows one process with the joint batch."""
    from ccsam_cases import make, make_batch, make_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from timm_lt.optim import BatchClosure
    setting = dict(setting)
    model = make_model(norm='group', head=setting.pop('head', 'linear'))
    mesh, rank = init_device_mesh('cpu', (2,)), dist.get_rank()
    fully_shard(model.fc, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = make(model, **setting)
    for step in range(3):
        x, y = make_batch(step)
        y[:7] = y[:7].clamp(max=2)
        x, y = (t[6 * rank:6 * rank + 6] for t in (x, y))
        optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    return torch.cat([p.detach().full_tensor().flatten() for p in model.parameters()])


def run_process():
    from worker import leave
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    for setting in SETTINGS:
        weights = train(rank, setting)
        other = weights.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(weights, other), f'replicas differ: {setting}'
        assert torch.allclose(weights, train(None, setting), rtol=1e-9, atol=1e-11), setting
    weights = train(rank, {}, 'batch', steps=30)
    other = weights.clone()
    dist.broadcast(other, src=0)
    assert torch.equal(weights, other), 'replicas differ with BatchNorm'
    for setting in ({}, {'head': 'cosine'}):
        assert torch.allclose(sharded(setting), train(None, setting), rtol=1e-9, atol=1e-11), f'FSDP2: {setting}'
    overflow_on_one_process(rank)
    Path(os.environ['CCSAM_DONE'] + str(rank)).touch()
    leave()


def test_two_processes_equal_one_when_a_class_is_missing_on_a_rank(tmp_path):
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1', 'CCSAM_DONE': str(tmp_path / 'done'),
        'PYTHONPATH': os.pathsep.join([str(HELPERS), os.environ.get('PYTHONPATH', '')])}
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', __file__],
        env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-4000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['done0', 'done1']


if __name__ == '__main__':
    run_process()
