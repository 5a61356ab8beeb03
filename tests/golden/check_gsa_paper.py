"""GSA of the paper: group gradients, projection, radius, perturbation and the final gradient, for both conventions of
the group loss. Gradients come from a network built of the stored weights."""

import torch
import torch.nn.functional as F
from gsa_released import gsa_regulariser

from timm_lt.optim.gsa.perturbation import gsa_perturbations


def check(golden):
    inputs, targets, group_of_class = golden['inputs'], golden['targets'], golden['group_of_class']
    num_groups, samples = golden['num_groups'], golden['samples_of_group'].tolist()
    shapes = [golden[f'init_{name}'].shape for name in ('w1', 'b1', 'w2', 'b2')]
    theta = golden['theta'].requires_grad_()
    start = torch.cat([golden[f'init_{name}'].flatten() for name in ('w1', 'b1', 'w2', 'b2')])
    torch.testing.assert_close(theta.detach(), start, rtol=0, atol=0)
    group = group_of_class[targets]
    count = torch.bincount(group, minlength=num_groups)
    golden.check('group_present', count > 0)

    def losses(theta):
        w1, b1, w2, b2 = (t.view(s) for t, s in zip(theta.split([s.numel() for s in shapes]), shapes))
        return F.cross_entropy(torch.tanh(inputs @ w1.T + b1) @ w2.T + b2, targets, reduction='none')

    def gradient(loss):
        return torch.autograd.grad(loss, theta)[0]

    batch = gradient(losses(theta).mean())
    golden.check('batch_gradient', batch)
    present = (count > 0).nonzero().flatten().tolist()
    share = count.double() / count.sum()
    for form in ('batch_mean', 'group_mean'):
        def group_loss(theta, k, form=form):
            total = losses(theta)[group == k].sum()
            return total / (len(targets) if form == 'batch_mean' else count[k])

        gradients = [gradient(group_loss(theta, k)) for k in present]
        result = gsa_perturbations(
            [[g] for g in gradients], [batch], [theta.detach()], [samples[k] for k in present], Z=golden['hp_Z'])
        values = {
            'group_loss': [group_loss(theta, k).detach() for k in present],
            'group_gradient': gradients,
            'projected_gradient': [h[0] for h in result.projected],
            'radius': list(result.radius),
            'perturbation': [e[0] for e in result.perturbation],
            'regulariser': list(gsa_regulariser(
                theta.detach().norm(), result.radius, [samples[k] for k in present])),
        }
        moved = [(theta.detach() + e).requires_grad_() for e in values['perturbation']]
        perturbed = [group_loss(t, k) for t, k in zip(moved, present)]
        values['perturbed_group_loss'] = [loss.detach() for loss in perturbed]
        final = sum(
            torch.autograd.grad(loss, t)[0] * (1 if form == 'batch_mean' else share[k])
            for loss, t, k in zip(perturbed, moved, present))
        golden.check(f'{form}__final_gradient', final)

        # a group that is not in the batch, and a radius that is a division by a vanished direction, are conventions
        undirected = torch.ones(num_groups, dtype=torch.bool)
        undirected[present] = result.radius == 0
        for name, value in values.items():
            key = f'{form}__{name}'
            full = golden[key].clone()
            full[present] = torch.stack(value)
            assert torch.isfinite(torch.stack(value)).all(), key
            if name in ('radius', 'regulariser'):
                full[undirected] = golden[key][undirected]
            elif name == 'projected_gradient' and bool(undirected[present].any()):
                rest = full[undirected & (count > 0)]
                assert rest.abs().max() <= 1e-12 * torch.stack(gradients).abs().max(), key
                full[undirected] = golden[key][undirected]
            golden.check(key, full)
