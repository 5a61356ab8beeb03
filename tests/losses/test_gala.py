"""GALA: statistics without a matrix, taken once per batch, the same on all processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from timm_lt.losses import GALALoss, gala_loss, sample_losses, statistics

COUNTS = [40, 12, 5, 2, 1]
C = len(COUNTS)
VARIANTS = ['paper', 'released']


def batches(steps, batch=9, classes=C):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(steps, batch, classes, generator=generator, dtype=torch.float64) * 2
    return logits, torch.randint(classes, (steps, batch), generator=generator)


class PlainGALA:
    """The method with its C x C accumulator, in plain loops over samples and classes."""

    def __init__(self, variant, classes=C, lambda1=1.2, lambda2=0.9, epsilon=1e-3):
        self.A = torch.zeros(classes, classes, dtype=torch.float64)
        self.accumulated = torch.zeros_like(self.A)
        self.variant, self.lambda1, self.lambda2, self.epsilon = variant, lambda1, lambda2, epsilon

    def __call__(self, logits, target, takes=True):
        classes = logits.shape[1]
        A = self.A if self.variant == 'paper' else self.accumulated
        theta = A.diagonal()
        phi = A.sum(0) - theta
        losses, gradients = [], []
        for z, y in zip(logits, target):
            z = z.detach().requires_grad_()
            adjusted = []
            for j in range(classes):
                negative = self.lambda2 * torch.log(phi[y] + self.epsilon)
                margin = self.lambda1 * torch.log(theta[j] + self.epsilon)
                adjusted.append(z[j] + margin - (negative if j != y or self.variant == 'released' else 0))
            loss = torch.logsumexp(torch.stack(adjusted), 0) - adjusted[y]
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss, z)[0])
        if takes:
            added = torch.zeros_like(self.A)
            for g, y in zip(gradients, target):
                added[:, y] += g.abs()
            self.A = self.A + (added / len(target) if self.variant == 'released' else added)
            self.accumulated = self.accumulated + self.A
        return torch.stack(losses), torch.stack(gradients)

    @property
    def positive(self):
        return (self.A if self.variant == 'paper' else self.accumulated).diagonal()


@pytest.mark.parametrize('variant', VARIANTS)
def test_gala_matches_plain_loops_for_ten_steps(variant):
    ours, plain = GALALoss(COUNTS, variant=variant), PlainGALA(variant)
    for logits, target in zip(*batches(10)):
        logits.requires_grad_()
        values = ours(logits, target, reduction='none')
        expected, gradients = plain(logits, target)
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(torch.autograd.grad(values.sum(), logits)[0], gradients)
        torch.testing.assert_close(ours.margin_sum, plain.positive)
        A = plain.A if variant == 'paper' else plain.accumulated
        torch.testing.assert_close(ours.margin_sum, A.sum(0) - A.diagonal())


@pytest.mark.parametrize('variant', VARIANTS)
def test_gala_loss_function_matches_the_module(variant):
    (logits, *_), (target, *_) = batches(1)
    loss = GALALoss(COUNTS, variant=variant)
    total = torch.linspace(2.0, 0.1, C, dtype=torch.float64)
    loss.margin_sum.copy_(total)
    expected = loss.per_sample(logits, target)
    torch.testing.assert_close(loss(logits, target, reduction='none'), expected)
    torch.testing.assert_close(gala_loss(logits, target, total, variant=variant), expected.mean())


def test_lambda2_has_no_effect_in_the_released_variant_and_one_in_the_paper_variant():
    (logits, *_), (target, *_) = batches(1)
    total = torch.linspace(2.0, 0.1, C, dtype=torch.float64)
    for variant, same in (('released', True), ('paper', False)):
        with_it = gala_loss(logits, target, total, lambda2=0.9, variant=variant)
        assert torch.equal(with_it, gala_loss(logits, target, total, lambda2=0.0, variant=variant)) == same


@pytest.mark.parametrize('variant', VARIANTS)
def test_only_vectors_of_the_number_of_classes_are_kept(variant):
    loss = GALALoss([3] * 1000, variant=variant)
    assert sum(b.numel() for b in loss.buffers()) <= 3 * 1000 + 1
    assert not list(loss.parameters())


@pytest.mark.parametrize('variant', VARIANTS)
def test_staged_micro_batches_count_as_the_joint_batch_and_only_after_the_commit(variant):
    joint, staged = GALALoss(COUNTS, variant=variant), GALALoss(COUNTS, variant=variant)
    for logits, target in zip(*batches(4, batch=9)):
        joint(logits, target)
        before = staged.margin_sum.clone()
        for part in (slice(0, 2), slice(2, 9)):
            with statistics(staged, 'staged'):
                staged(logits[part], target[part])
        assert torch.equal(staged.margin_sum, before)
        staged.commit_statistics()
        torch.testing.assert_close(staged.margin_sum, joint.margin_sum)
    assert float(joint.margin_sum.sum()) > 0


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_skipped_step_leaves_no_trace(variant):
    (logits, *_), (target, *_) = batches(1)
    loss = GALALoss(COUNTS, variant=variant)
    loss(logits, target)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    with loss.statistics('staged'):
        loss(logits, target)
    loss.discard_statistics()
    for k, v in loss.state_dict().items():
        assert torch.equal(v, before[k])
    loss.commit_statistics()  # nothing is staged: not even the running sum moves
    for k, v in loss.state_dict().items():
        assert torch.equal(v, before[k])


@pytest.mark.parametrize('variant', VARIANTS)
def test_further_evaluations_of_a_batch_are_not_counted(variant):
    (logits, *_), (target, *_) = batches(1)
    once, often = GALALoss(COUNTS, variant=variant), GALALoss(COUNTS, variant=variant)
    once(logits, target)
    with often.statistics('staged'):
        first = often(logits, target)
    with often.statistics('hold'):
        sample_losses(often, logits + 1.5, target)
        torch.testing.assert_close(often(logits, target), first)
    often.commit_statistics()
    torch.testing.assert_close(often.margin_sum, once.margin_sum)


def test_statistics_mode_returns_after_an_error():
    loss = GALALoss(COUNTS)
    with pytest.raises(RuntimeError), loss.statistics('hold'):
        raise RuntimeError
    assert loss.statistics_mode == 'immediate'
    with pytest.raises(ValueError, match='statistics mode'), loss.statistics('later'):
        pass


@pytest.mark.parametrize('variant', VARIANTS)
def test_evaluation_is_plain_cross_entropy_and_takes_nothing(variant):
    (logits, *_), (target, *_) = batches(1)
    loss = GALALoss(COUNTS, variant=variant)
    loss(logits, target)
    before = loss.margin_sum.clone()
    with torch.no_grad():
        loss(logits, target)
    loss.eval()
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target))
    soft = F.one_hot(target, C).double()
    torch.testing.assert_close(loss(logits, soft), F.cross_entropy(logits, target))
    assert torch.equal(loss.margin_sum, before)


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_soft_target_counts_by_its_shares(variant):
    (logits, *_), (target, *_) = batches(1, batch=6)
    other = (target + 1) % C
    mixed, parts = GALALoss(COUNTS, variant=variant), GALALoss(COUNTS, variant=variant)
    start = torch.linspace(2.0, 0.1, C, dtype=torch.float64)
    for loss in (mixed, parts):
        loss.margin_sum.copy_(start)
        loss.gradient_sum.zero_().add_(start)
    got = mixed(logits, 0.7 * F.one_hot(target, C).double() + 0.3 * F.one_hot(other, C), reduction='none')
    values = [gala_loss(logits, y, start, variant=variant, reduction='none') for y in (target, other)]
    torch.testing.assert_close(got, 0.7 * values[0] + 0.3 * values[1])
    expected = torch.zeros(C, dtype=torch.float64)
    for share, y, value in zip((0.7, 0.3), (target, other), values):
        expected.index_add_(0, y, share * (1 - torch.exp(-value)))
    expected = expected / (6 if variant == 'released' else 1)
    torch.testing.assert_close(mixed.gradient_sum, start + expected)


@pytest.mark.parametrize('variant', VARIANTS)
def test_class_weights_and_sample_weights_do_not_enter_the_statistics(variant):
    (logits, *_), (target, *_) = batches(1)
    plain, weighted = GALALoss(COUNTS, variant=variant), GALALoss(COUNTS, variant=variant, class_weight=[1, 2, 3, 4, 5])
    plain(logits, target)
    weighted(logits, target)
    torch.testing.assert_close(plain.margin_sum, weighted.margin_sum)


@pytest.mark.parametrize('variant', VARIANTS)
def test_overflowed_logits_do_not_spoil_the_statistics(variant):
    loss = GALALoss(COUNTS, variant=variant)
    loss(torch.full((3, C), float('nan')), torch.tensor([0, 1, 2]))
    loss(torch.tensor([[float('inf'), 0, 0, 0, 0]]), torch.tensor([0]))
    assert bool(torch.isfinite(loss.margin_sum).all())


@pytest.mark.parametrize('variant', VARIANTS)
def test_resumed_run_continues_with_the_same_numbers(variant):
    logits, target = batches(6)
    whole, first = GALALoss(COUNTS, variant=variant), GALALoss(COUNTS, variant=variant)
    expected = [whole(*step) for step in zip(logits, target)]
    for step in zip(logits[:3], target[:3]):
        first(*step)
    second = GALALoss(COUNTS, variant=variant)
    second.load_state_dict(first.state_dict())
    assert [second(*step) for step in zip(logits[3:], target[3:])] == expected[3:]


def _run_rank(rank, port, out):
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    try:
        result = {}
        for variant in VARIANTS:
            for mode in ('immediate', 'staged'):
                loss = GALALoss(COUNTS, variant=variant)
                # unequal parts, and on one rank none in one step
                for step, (logits, target) in enumerate(zip(*batches(4, batch=9))):
                    cut = 9 if step == 2 else 4
                    part = slice(0, cut) if rank == 0 else slice(cut, 9)
                    with loss.statistics(mode):
                        loss(logits[part], target[part], reduction='none')
                    if mode == 'staged':
                        loss.commit_statistics()
                result[variant, mode] = loss.state_dict()
        torch.save(result, f'{out}/{rank}.pt')
    finally:
        dist.destroy_process_group()


def test_two_processes_hold_the_statistics_of_the_joint_batch(tmp_path):
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(_run_rank, (port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    for variant in VARIANTS:
        joint = GALALoss(COUNTS, variant=variant)
        for logits, target in zip(*batches(4, batch=9)):
            joint(logits, target)
        for mode in ('immediate', 'staged'):
            for k, v in joint.state_dict().items():
                assert torch.equal(ranks[0][variant, mode][k], ranks[1][variant, mode][k])
                torch.testing.assert_close(ranks[0][variant, mode][k], v)
