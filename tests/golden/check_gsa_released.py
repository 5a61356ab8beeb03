"""GSA as released: four steps of its recurrence and of SGD, with clamped radii and without, and with the penalty."""

import torch
import torch.nn.functional as F
from gsa_released import released_ascent

from timm_lt.gkp import GroupPenalty


def check(golden):
    for prefix in sorted({key.split('__')[0] for key in golden.arrays}):
        _check_setting(golden, prefix)


def _check_setting(golden, prefix):
    def get(name):
        return golden[f'{prefix}__{name}']

    inputs, targets, group_of_class = get('inputs'), get('targets'), get('group_of_class')
    num_groups, samples = get('num_groups'), get('samples_of_group').tolist()
    start = [get(f'init_{name}') for name in ('w1', 'b1', 'w2', 'b2')]
    parameters = [t.clone().requires_grad_() for t in start]
    alpha = get('hp_top_alpha')
    penalty, strength = None, get('hp_gkp_lambda')
    if f'{prefix}__gkp_anchor_first_layer' in golden:
        first = parameters[:2]
        sizes = [p.numel() for p in first]
        vectors = [[[t.view_as(p) for t, p in zip(row.split(sizes), first)] for row in get(f'gkp_{name}_first_layer')]
                   for name in ('fisher', 'anchor')]
        penalty = GroupPenalty(first, *vectors, samples, strength)
    optimizer = torch.optim.SGD(
        parameters, get('hp_lr'), momentum=get('hp_momentum'), weight_decay=get('hp_weight_decay'))

    def gradient(loss, weights):
        gradients = list(torch.autograd.grad(alpha * loss, parameters))
        if penalty is not None:
            for i, g in enumerate(penalty.quadratic(weights).gradients()):
                gradients[i] = gradients[i] + (1 - alpha) * g
        return gradients

    def flat(tensors):
        return torch.cat([t.detach().flatten() for t in tensors])

    steps, buffers, found = len(inputs), {}, {}

    def keep(name, step, value, rows=None):
        reference = get(name)
        full = found.setdefault(name, torch.zeros_like(reference))
        full[(step,) if rows is None else (step, rows)] = value.to(full.dtype)

    for step in range(steps):
        x, y = inputs[step], targets[step]
        group = group_of_class[y]
        count = torch.bincount(group, minlength=num_groups)
        present = (count > 0).nonzero().flatten()
        share = {int(k): count[k].item() / len(y) for k in present}

        def loss(x=x, y=y):
            w1, b1, w2, b2 = parameters
            return F.cross_entropy(torch.tanh(x @ w1.T + b1) @ w2.T + b2, y, reduction='none')

        values = loss()
        first_pass = gradient(
            sum(values[group == k].mean() for k in present), [float(k in share) for k in range(num_groups)])
        result = released_ascent(
            first_pass, buffers, [p.detach() for p in parameters], share, samples,
            strength=get('hp_rho_scale_C'), sigma=get('hp_sigma'), decay=get('hp_lambda'),
            radius_min=get('hp_rho_min'), radius_max=get('hp_rho_max'), adaptive=get('hp_adaptive'),
            keep_gradients=True)
        buffers = result.buffers
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, result.ascent)
        perturbed = loss().mean()
        second_pass = gradient(perturbed, [share.get(k, 0.0) for k in range(num_groups)])
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)
        for p, g in zip(parameters, second_pass):
            p.grad = g
        optimizer.step()

        keep('first_pass_gradient', step, flat(first_pass))
        keep('second_pass_gradient', step, flat(second_pass))
        keep('second_pass_cross_entropy', step, perturbed.detach())
        keep('joint_ascent', step, flat(result.ascent))
        keep('params_after_step', step, flat(parameters))
        keep('group_in_batch', step, count > 0)
        keep('radius', step, result.radius, present)
        keep('grad_norm_of_group', step, result.gradient_norm, present)
        keep('gradient_left_after_group', step, torch.stack([flat(g) for g in result.gradient_left]), present)
        known = torch.tensor(sorted(buffers))
        keep('momentum_buffer_set', step, torch.ones(len(known), dtype=torch.bool), known)
        keep('momentum_buffer', step, torch.stack([flat(buffers[int(k)]) for k in known]), known)
    for name, value in found.items():
        golden.check(f'{prefix}__{name}', value)
