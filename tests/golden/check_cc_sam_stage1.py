"""CC-SAM stage 1 on a linear classifier: radii, perturbations, losses and gradients of both variants."""

import torch
import torch.nn.functional as F

from timm_lt.optim.ccsam.perturbations import class_perturbations


def compare(golden, key, value, rows=None):
    """Check the entries that the published code could compute; elsewhere (one training image) ours must be finite."""
    assert torch.isfinite(value).all(), key
    if key not in golden:
        return
    reference = torch.as_tensor(golden[key])
    known = torch.isfinite(reference)
    if rows is not None:
        known &= rows.view(-1, *[1] * (reference.ndim - 1))
    golden.check(key, torch.where(known, value, reference))


def class_mean(values, labels, classes):
    return torch.stack([values[labels == c].mean(0) for c in classes.tolist()])


def check(golden):
    features, labels, counts = golden['features'], golden['targets'], golden['class_counts']
    weight, bias, classes = golden['weight'], golden['bias'], golden['classes_in_batch']
    golden.check('classes_in_batch', labels.unique())
    logits = (features @ weight.T + bias).requires_grad_()
    clean = F.cross_entropy(logits, labels, reduction='none')
    residuals, = torch.autograd.grad(clean.sum(), logits)
    golden.check('clean_loss_per_sample', clean)
    golden.check('class_mean_grad_weight', class_mean(residuals[:, :, None] * features[:, None], labels, classes))
    golden.check('class_mean_grad_bias', class_mean(residuals, labels, classes))
    golden.check('classifier_norm', (weight.square().sum() + bias.square().sum()).sqrt() + 1e-12)

    for key in golden.keys(suffix='__noise_ratio'):
        setting = key.removeprefix('released_').removesuffix('__noise_ratio')
        scale, flat_ratio = golden[key], golden[f'released_{setting}__flat_ratio']
        classes_known = golden[f'released_{setting}__class_is_finite']
        samples_known = golden[f'released_{setting}__sample_is_finite']
        all_known = bool(samples_known.all())
        for variant in ('released', 'paper'):
            prefix = f'{variant}_{setting}__'
            inputs = [t.clone().requires_grad_() for t in (features, weight, bias)]
            f, w, b = inputs
            perturbations = class_perturbations(
                features, residuals, labels, counts, weight, bias, scale=scale, variant=variant)
            z = f @ w.T + b
            perturbed = F.cross_entropy(z + perturbations.shift(f, labels), labels, reduction='none')
            clean = F.cross_entropy(z, labels, reduction='none')
            total = (1 - flat_ratio) * clean.mean() + flat_ratio * perturbed.mean()
            gradients = torch.autograd.grad(total, inputs)

            # the factors put together, which the package itself never does
            p = perturbations
            sizes = (labels[:, None] == labels).sum(1).to(weight.dtype)
            for tensor, rows in (
                    ('weight', (p.weight_scale * sizes)[:, None, None] * p.residuals[:, :, None] * p.features[:, None]),
                    ('bias', (p.bias_scale * sizes)[:, None] * p.residuals),
            ):
                compare(golden, f'{prefix}perturbation_{tensor}', class_mean(rows, labels, classes), classes_known)
            radii = class_mean(torch.stack([p.weight_radius, p.bias_radius], 1), labels, classes)
            if variant == 'released':
                compare(golden, f'{prefix}radius_weight_bias', scale * radii, classes_known)
            else:
                assert torch.equal(radii[:, 0], radii[:, 1])
                compare(golden, f'{prefix}radius', radii[:, 0], classes_known)
            compare(golden, f'{prefix}perturbed_loss_per_sample', perturbed.detach(), samples_known)
            compare(golden, f'{prefix}grad_features', gradients[0], samples_known)
            for name, value in (
                    ('perturbed_loss_mean', perturbed.mean()), ('clean_loss_mean', clean.mean()),
                    ('total_loss', total), ('grad_weight', gradients[1]), ('grad_bias', gradients[2]),
            ):
                if all_known or name == 'clean_loss_mean':
                    compare(golden, prefix + name, value.detach())
                elif prefix + name in golden:
                    golden.skip(prefix + name)  # holds the classes that the published code cannot compute
