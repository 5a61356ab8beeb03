"""Trajectories of SGD and the sharpness-aware optimizers on a small tanh network, from the authors' code."""

import timm
import torch
import torch.nn as nn

from timm_lt.optim import BatchClosure


class Recorder(nn.CrossEntropyLoss):
    """Cross-entropy that remembers the values of its last calls, each with the targets that it belongs to."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, logits, target):
        values = nn.functional.cross_entropy(logits, target, reduction='none')
        self.calls.append((values.detach(), target))
        return values.mean() if self.reduction == 'mean' else values


def network(golden):
    w1 = golden['init_w1']
    model = nn.Sequential(
        nn.Linear(w1.shape[1], w1.shape[0]), nn.Tanh(), nn.Linear(w1.shape[0], len(golden['init_b2']))).double()
    with torch.no_grad():
        for p, name in zip(model.parameters(), ('init_w1', 'init_b1', 'init_w2', 'init_b2')):
            p.copy_(golden[name])
    return model


def run(golden, name, report, **options):
    """Parameters after every step, and the loss that ``report(clean, calls)`` makes of each step."""
    model = network(golden)
    optimizer = timm.optim.create_optimizer_v2(
        list(model.parameters()), name, lr=golden['hp_lr'], momentum=golden['hp_momentum'],
        weight_decay=golden['hp_weight_decay'], **options)
    params, losses, radii = [], [], []
    for step, (x, y) in enumerate(zip(golden['inputs'], golden['targets'])):
        if hasattr(optimizer, 'set_epoch'):
            optimizer.set_epoch(step, golden['hp_total_epochs'])
            radii.append(optimizer.radii()[0])
        recorder = Recorder()
        clean = optimizer.step(BatchClosure(model, recorder, x, y))
        losses.append(report(clean, recorder.calls))
        params.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return torch.stack(params), torch.stack(losses), torch.tensor(radii, dtype=torch.float64)


def check(golden):
    counts = golden['class_counts']
    eta, batch = golden['hp_eta'], golden['targets'].shape[1]
    assert torch.equal((counts < eta).nonzero().flatten(), golden['tail_classes'])
    tail = counts < eta

    def at_theta(clean, calls):
        return clean

    def share_of(tail_weight=1.0):
        # without BatchNorm head and tail pass apart, and the last pass of each is the one that counts
        def report(clean, calls):
            last = {
                bool(tail[target[0]]): values.sum()
                for values, target in calls if len(set(tail[target].tolist())) == 1
            }
            return (last.get(False, 0) + tail_weight * last.get(True, 0)) / batch
        return report

    cases = {
        'sgd': ('momentum', at_theta, {}),
        'sam': ('sam', at_theta, {'rho': golden['hp_rho']}),
        'sam_adaptive': ('asam', at_theta, {'rho': golden['hp_rho_adaptive']}),
        'imbsam_own_repository': ('imbsam', share_of(2.0), {
            'rho': golden['hp_rho'], 'eta': eta, 'variant': 'released'}),
        'imbsam_without_doubling': ('imbsam', share_of(), {'rho': golden['hp_rho'], 'eta': eta}),
        'imbsam_ssesam_repository': ('imbsam', share_of(), {
            'rho': golden['hp_rho'], 'eta': eta, 'variant': 'group_mean'}),
        'ssesam': ('ssesam', share_of(), {
            'rho_head': golden['hp_head_rho'], 'rho_tail': golden['hp_tail_rho'], 'eta': eta,
            'stage': golden['hp_stage_gamma']}),
        'focal_sam': ('focalsam', lambda clean, calls: calls[-1][0].mean(), {
            'rho': golden['hp_rho_focal'], 'gamma': golden['hp_flat_gamma'], 'sharpness': golden['hp_sharpness']}),
    }
    for key, (name, report, options) in cases.items():
        if name in ('imbsam', 'ssesam', 'focalsam'):
            options['class_counts'] = counts
        params, losses, radii = run(golden, name, report, **options)
        golden.check(f'{key}__params_after_step', params)
        golden.check(f'{key}__loss', losses)
        if key == 'ssesam':
            golden.check('ssesam__head_rho_used_at_step', radii)
    params, _, _ = run(golden, 'sam', at_theta, rho=golden['hp_rho_adaptive'], adaptive=True)
    golden.check('sam_adaptive__params_after_step', params)
    optimizer = timm.optim.create_optimizer_v2(
        network(golden), 'focalsam', class_counts=counts, gamma=golden['hp_flat_gamma'],
        sharpness=golden['hp_sharpness'])
    golden.check('focal_sam__coefficients', optimizer.coefficients)
