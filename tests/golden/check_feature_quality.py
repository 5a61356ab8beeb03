"""Feature quality of ``timm_lt.gkp``: variance, distance, and Q in the paper's and the released form."""

import torch

from timm_lt.gkp import feature_quality


def check(golden):
    features, labels, num_classes = golden['features'], golden['labels'], golden['num_classes']
    paper = feature_quality(features, labels, num_classes, beta=golden['hp_beta_paper'])
    released = feature_quality(features, labels, num_classes, beta=golden['hp_lambda_released'], variant='released')
    golden.check('class_present', paper.present)
    present, defined = golden['class_present'], golden['quality_defined']
    golden.check('quality_defined', paper.defined)
    for key, mask, value in (
            ('variance', present, paper.variance),
            ('distance_to_nearest_centroid', present, paper.distance),
            ('quality_paper', defined, paper.quality),
            ('quality_released', defined, released.quality),
    ):
        # what an absent or undefined class holds is a matter of convention
        golden.check(key, torch.where(mask, value, golden[key]))
        assert torch.isfinite(value[mask]).all()
