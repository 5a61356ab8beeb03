"""What ``test_sam_distributed.py`` runs in every process of one group; prints the name of each check that passed."""

import copy
import sys
import warnings

import timm
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from sam_reference import (
    COUNTS,
    NAMES,
    OWN,
    Overflowing,
    assert_bit_equal,
    flat,
    make_batch,
    make_model,
    make_optimizer,
    reference_gradient,
)
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel as DDP
from worker import leave

from timm_lt import finetune
from timm_lt.optim import BatchClosure, optimizer_step

warnings.simplefilter('ignore')
ALL = ('momentum', *NAMES)
VARIANTS = ('gsam', 'gnp', 'friendlysam', 'looksam')


def joint_batch(seed, kind='mixed'):
    """The joint batch, sorted by class for 'sorted': then some processes have no head or no tail samples."""
    x, y = make_batch(12, seed=seed)
    if kind == 'sorted':
        order = y.argsort()
        x, y = x[order], y[order]
    return x, y


def share(tensor, sizes=None):
    sizes = sizes or [len(tensor) // dist.get_world_size()] * dist.get_world_size()
    return tensor.split(sizes)[dist.get_rank()]


def assert_same_everywhere(tensor, what):
    copies = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, tensor.contiguous())
    assert all(torch.equal(copies[0], c) for c in copies), f'{what} differs between processes'


def close(a, b, what):
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-11), f'{what}: off by {(a - b).abs().max()}'


def check_processes_equal_one_process_with_the_joint_batch(wrap=lambda model, optimizer: (DDP(model), optimizer)):
    for kind in ('mixed', 'sorted'):
        for name in ALL if kind == 'sorted' else (*ALL, *VARIANTS):
            alone = make_model('group')
            # DDP sends buffers in a forward pass, which a process without a part does not make
            alone.register_buffer('constant', torch.ones(3))
            model = copy.deepcopy(alone)
            optimizer, single = make_optimizer(model, name), make_optimizer(alone, name)
            model, optimizer = wrap(model, optimizer)
            for step in range(3):
                x, y = joint_batch(step, kind)
                optimizer_step(
                    optimizer, BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y)), clip_grad=0.5)
                optimizer_step(single, BatchClosure(alone, nn.CrossEntropyLoss(), x, y), clip_grad=0.5)
            parameters = [p.full_tensor() if hasattr(p, 'full_tensor') else p for p in model.parameters()]
            close(flat(parameters), flat(alone.parameters()), f'{name} {kind}')


def check_a_tuned_network_equals_that_of_one_process_with_the_joint_batch():
    for method, name in (('lora', 'momentum'), ('lora', 'sam'), ('adaptformer', 'sam')):
        torch.manual_seed(0)
        alone = timm.create_model('test_vit', num_classes=3, img_size=16, patch_size=8).double()
        finetune.apply(alone, method)
        start = {n: p.detach().clone() for n, p in alone.named_parameters() if not p.requires_grad}
        model = DDP(copy.deepcopy(alone))
        optimizer, single = (timm.optim.create_optimizer_v2(m, name, lr=0.1, momentum=0.9) for m in (model, alone))
        for _ in range(2):
            x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4) % 3
            optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y)), clip_grad=0.5)
            optimizer_step(single, BatchClosure(alone, nn.CrossEntropyLoss(), x, y), clip_grad=0.5)
        assert_bit_equal({n: p for n, p in model.module.named_parameters() if n in start}, start)
        finetune.merge(model)
        finetune.merge(alone)
        close(flat(model.parameters()), flat(alone.parameters()), f'{method} {name}')


def check_gradients_as_bucket_views_equal_one_process():
    check_processes_equal_one_process_with_the_joint_batch(lambda m, o: (DDP(m, gradient_as_bucket_view=True), o))


def check_random_perturbations_are_those_of_one_process():
    alone = make_model('group')
    model = DDP(copy.deepcopy(alone))
    optimizer, single = make_optimizer(model, 'rwp', rho=0.5), make_optimizer(alone, 'rwp', rho=0.5)
    for step in range(3):
        x, y = joint_batch(step)
        optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y)))
        optimizer_step(single, BatchClosure(alone, nn.CrossEntropyLoss(), x, y))
    close(flat(model.parameters()), flat(alone.parameters()), 'rwp')


def check_uneven_shares_and_class_weights_and_micro_batches_equal_the_joint_batch():
    weight = torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    sizes = [5, 7] if dist.get_world_size() == 2 else [2, 2, 3, 5]
    for name in ALL:
        alone = make_model('group')
        model = DDP(copy.deepcopy(alone))
        optimizer, single = make_optimizer(model, name), make_optimizer(alone, name)
        for step in range(2):
            x, y = joint_batch(step, 'sorted')
            mine_x, mine_y = share(x, sizes), share(y, sizes)
            cut = [1, len(mine_x) - 1]
            xs, ys = list(mine_x.split(cut)), list(mine_y.split(cut))
            optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(weight), xs, ys))
            optimizer_step(single, BatchClosure(alone, nn.CrossEntropyLoss(weight), x, y))
        close(flat(model.parameters()), flat(alone.parameters()), name)


def check_batchnorm_passes_are_those_of_each_process_and_replicas_stay_bit_equal_over_100_steps():
    for name in NAMES:
        model = DDP(make_model('batch', torch.float32))
        optimizer = make_optimizer(model, name, every=1)
        for step in range(100):
            optimizer.set_epoch(step, 100)
            x, y = make_batch(4, seed=step * 10 + dist.get_rank(), dtype=torch.float32)
            optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        assert_same_everywhere(flat(model.parameters()), f'{name} after 100 steps')
        # the moments of the base as well
        assert_same_everywhere(flat(s['momentum_buffer'] for s in optimizer.state.values()), f'{name} momentum')


def check_buffers_after_a_step_are_those_of_one_plain_forward_of_ddp():
    for name in NAMES:
        model, plain = DDP(make_model('batch')), DDP(make_model('batch'))
        optimizer = make_optimizer(model, name)
        for step in range(3):
            x, y = make_batch(6, seed=step * 10 + dist.get_rank())
            optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
            plain.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            assert_bit_equal(dict(model.named_buffers()), dict(plain.named_buffers()))
    # the cheaper ways never pass through DDP with averaging, after which it sends the buffers of the first process
    for mode in ('stacked', 'exact_ascent'):
        model, plain = DDP(make_model('batch')), DDP(make_model('batch'))
        optimizer = make_optimizer(model, 'ssesam', batchnorm=mode)
        for step in range(3):
            x, y = make_batch(6, seed=step * 10 + dist.get_rank())
            optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
            plain.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            for mine, other in zip(model.buffers(), plain.buffers()):
                assert torch.allclose(mine, other, rtol=1e-12, atol=1e-12), mode


def check_dropout_and_ignored_samples_of_one_process_keep_replicas_equal():
    for name in (*NAMES, 'ccsam'):
        model = make_model('group')
        model.norm = nn.Sequential(model.norm, nn.Dropout(0.5))
        options = {'class_counts': COUNTS, 'layers': '*'} if name == 'ccsam' else {}
        model = DDP(model)
        optimizer = make_optimizer(model, name, **options)
        for step in range(2):
            x, y = make_batch(6, seed=step * 10 + dist.get_rank())
            if dist.get_rank() == 0:
                y[2] = -100
            torch.manual_seed(step + 7 * dist.get_rank())
            optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        assert_same_everywhere(flat(model.parameters()), name)


def check_local_ascent_perturbs_every_process_by_its_own_gradient():
    for name in ('sam', 'imbsam'):
        reference = make_model('group')
        model = DDP(copy.deepcopy(reference))
        optimizer = make_optimizer(model, name, local_ascent=True)
        x, y = joint_batch(0)
        optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y)))
        mine = flat(reference_gradient(reference, name, share(x), share(y), OWN[name]).values())
        dist.all_reduce(mine)
        close(flat(p.grad for p in model.parameters()), mine / dist.get_world_size(), name)


def check_overflow_in_any_pass_of_one_process_makes_all_skip():
    accelerator = Accelerator(cpu=True)
    bad_rank = dist.get_world_size() - 1
    for norm in ('batch', 'group'):
        local = {'local_ascent': True}
        for name, options in [*((n, {}) for n in (*ALL, 'gsam', 'looksam')), ('sam', local), ('ssesam', local)]:
            accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=64.0)
            model, optimizer = accelerator.prepare(
                *(lambda m: (m, make_optimizer(m, name, **options)))(make_model(norm, torch.float32)))  # noqa: B023
            x, y = joint_batch(0)
            x, y = share(x).float(), share(y)
            for at in range(6):
                criterion = Overflowing(at if dist.get_rank() == bad_rank else None)
                before = copy.deepcopy((model.module.state_dict(), optimizer.state_dict()))
                result = optimizer_step(optimizer, BatchClosure(model, criterion, x, y, accelerator), clip_grad=1.0)
                injected = torch.tensor(float(criterion.at is not None and criterion.calls > at))
                dist.all_reduce(injected)
                assert result.skipped == bool(injected), f'{name} {norm} pass {at}'
                assert_same_everywhere(flat(model.parameters()), f'{name} {norm} pass {at}')
                assert torch.isfinite(flat(model.parameters())).all()
                if result.skipped:
                    assert_bit_equal(model.module.state_dict(), before[0])
                    assert optimizer.state_dict().get('sharpness_aware') == before[1].get('sharpness_aware')
            assert accelerator.scaler.get_scale() < 64.0


def check_static_graph_is_refused():
    x, y = joint_batch(0)
    try:
        BatchClosure(DDP(make_model(), static_graph=True), nn.CrossEntropyLoss(), x, y)
    except ValueError as e:
        assert 'static_graph' in str(e)
    else:
        raise AssertionError('static_graph was accepted')
    try:
        make_optimizer(make_model(), 'sam').attach(DDP(make_model(), static_graph=True))
    except ValueError as e:
        assert 'static_graph' in str(e)
    else:
        raise AssertionError('static_graph was accepted by attach')


def check_fsdp2_through_accelerate_equals_one_process():
    accelerator = Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy='NO_WRAP', cpu_ram_efficient_loading=False)
    shared = accelerator.state._shared_state
    before = dict(shared)

    def wrap(model, optimizer):
        # Accelerate chooses FSDP for accelerators only; its state is told that this is one, and forgets it each time
        shared.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
        accelerator._models.clear()
        accelerator._optimizers.clear()
        model, optimizer = accelerator.prepare(model, optimizer)
        assert all(type(p).__name__ == 'DTensor' for p in model.parameters())
        return model, optimizer

    try:
        check_processes_equal_one_process_with_the_joint_batch(wrap)
        model, optimizer = (lambda m: wrap(m, make_optimizer(m, 'sam', local_ascent=True)))(make_model('group'))
        x, y = joint_batch(0)
        try:
            optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y), accelerator))
        except ValueError as e:
            assert 'local_ascent' in str(e)
        else:
            raise AssertionError('local_ascent was accepted with sharded parameters')
        # names are those of the sharded parameters, also when the optimizer knew the model before
        alone = make_model('group')
        model = copy.deepcopy(alone)
        single, optimizer = (make_optimizer(m, 'sam', layers='fc*') for m in (alone, model))
        optimizer.attach(model)
        model, optimizer = wrap(model, optimizer)
        optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y), accelerator))
        optimizer_step(single, BatchClosure(alone, nn.CrossEntropyLoss(), x, y))
        close(flat(p.full_tensor() for p in model.parameters()), flat(alone.parameters()), 'layers')
        # what writes sharded checkpoints drops all but state and groups: the own state has to be in one of them
        model, optimizer = (lambda m: wrap(m, make_optimizer(m, 'ssesam')))(make_model('group'))
        optimizer.optimizer.set_epoch(8, 10)
        optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y), accelerator))
        state = get_optimizer_state_dict(model, optimizer.optimizer)
        model, optimizer = (lambda m: wrap(m, make_optimizer(m, 'ssesam')))(make_model('group'))
        set_optimizer_state_dict(model, optimizer.optimizer, state)
        own = optimizer.optimizer.state_dict()['sharpness_aware']
        assert own == {'step': 1, 'epoch': 8, 'num_epochs': 10}, own
        # so does the state of each parameter
        model, optimizer = (lambda m: wrap(m, make_optimizer(m, 'friendlysam')))(make_model('group'))
        optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y), accelerator))
        state = get_optimizer_state_dict(model, optimizer.optimizer)
        kept = [s['average_gradient'].full_tensor() for s in optimizer.optimizer.state.values()]
        model, optimizer = (lambda m: wrap(m, make_optimizer(m, 'friendlysam')))(make_model('group'))
        set_optimizer_state_dict(model, optimizer.optimizer, state)
        loaded = [s['average_gradient'].full_tensor() for s in optimizer.optimizer.state.values()]
        assert len(loaded) == 6 and all(v.any() for v in loaded) and all(map(torch.equal, loaded, kept))
        # more parts than one need a pass each here, and BatchNorm's buffers must not see them
        model, optimizer = (lambda m: wrap(m, make_optimizer(m, 'ssesam')))(make_model('batch'))
        plain = make_model('batch')
        optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), share(x), share(y), accelerator))
        plain(share(x))
        assert_bit_equal(dict(model.named_buffers()), dict(plain.named_buffers()))
    finally:
        shared.clear()
        shared.update(before)


def main():
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    for name in sys.argv[1:]:
        globals()[f'check_{name}']()
        dist.barrier()
        if dist.get_rank() == 0:
            sys.stdout.write(f'passed {name}\n')
            sys.stdout.flush()
    leave()


if __name__ == '__main__':
    main()
