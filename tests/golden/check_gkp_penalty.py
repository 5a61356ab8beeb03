"""The knowledge-preservation penalty of ``timm_lt.gkp``: value and gradient while training on each group."""

import torch

from timm_lt.gkp import GroupPenalty


def check(golden):
    theta, anchors, fishers = golden['theta'], golden['anchors'], golden['fishers']
    num_groups = golden['num_groups']
    classes, samples = golden['classes_per_group'], golden['samples_per_group']
    for form, sizes, strength in (
            ('paper_size_is_classes', classes, golden['hp_lambda_paper']),
            ('paper_size_is_samples', samples, golden['hp_lambda_paper']),
            ('released', samples, golden['hp_lambda_released']),
    ):
        grouped = GroupPenalty([theta], fishers[:, None], anchors[:, None], sizes, strength)
        alone = [grouped.training_on(k) for k in range(num_groups)]
        values = torch.stack([p.value() for p in alone])
        gradients = torch.stack([p.gradients()[0] for p in alone])
        golden.check(f'{form}__value_training_group_k', values)
        golden.check(f'{form}__grad_training_group_k', gradients)
        together = grouped.quadratic()
        torch.testing.assert_close(together.value(), values.sum(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together.gradients()[0], gradients.sum(0), rtol=1e-9, atol=1e-10)
