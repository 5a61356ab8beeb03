"""CC-SAM stage 2 on a linear classifier: adversarial features, progressive mixing, losses and gradients."""

import torch
import torch.nn.functional as F

from timm_lt.two_stage._adversarial import adversarial_features, class_strength, feature_gradients
from timm_lt.two_stage.ccsam import CCSAMSecondStage


def check(golden):
    features, labels, counts = golden['features'], golden['targets'], golden['class_counts']
    start, end = golden['hp_stage_epoch'], golden['hp_max_epoch']
    head = torch.nn.Linear(features.shape[1], len(counts), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(golden['weight'])
        head.bias.copy_(golden['bias'])
    method = CCSAMSecondStage(
        counts, variant='released', noise=golden['hp_adver_reg'], div=golden['hp_div'], max_share=golden['hp_up_limit'])
    method.use_head(head)

    strength = class_strength(counts, golden['hp_div'])
    golden.check('class_weights', strength)
    logits = head(features).detach().requires_grad_()
    clean = F.cross_entropy(logits, labels, reduction='none')
    residuals, = torch.autograd.grad(clean.sum(), logits)
    adversarial = adversarial_features(
        features, feature_gradients(head, features, residuals), labels,
        noise=golden['hp_adver_reg'] * strength[labels], variant='released')
    golden.check('adversarial_features', adversarial)
    golden.check('clean_loss_per_sample', clean)
    golden.check('weighted_adversarial_loss_per_sample', strength[labels] * F.cross_entropy(
        head(adversarial), labels, reduction='none'))

    alphas, totals, weights, biases = [], [], [], []
    for epoch in golden['epochs'].tolist():
        # the official share of an epoch is the one after it has passed
        progress = (epoch - start + 1) / (end - start)
        alphas.append(method.share(progress))
        total = method(features, labels, torch.nn.CrossEntropyLoss(), progress)
        gradients = torch.autograd.grad(total, [head.weight, head.bias])
        totals.append(total.detach())
        weights.append(gradients[0])
        biases.append(gradients[1])
    golden.check('alpha', torch.tensor(alphas, dtype=torch.float64))
    golden.check('total_loss', torch.stack(totals))
    golden.check('grad_weight', torch.stack(weights))
    golden.check('grad_bias', torch.stack(biases))
