"""Losses on logits: value, gradient and per-sample values."""

import torch
import torch.nn as nn

from timm_lt import create_loss
from timm_lt.losses import DeferredReweighting, drw_class_weights, eql_loss, gcl_loss, logit_adjustment_loss


def check(golden):
    counts = golden['class_counts']
    target = golden['targets']
    inputs = {'logits': golden['logits'], 'cosine': golden['cosine']}

    def compare(name, criterion, source='logits', transform=None):
        x = inputs[source].clone()
        x = (transform(x) if transform else x).requires_grad_()
        loss = criterion(x, target)
        golden.check(f'{name}__loss', loss)
        golden.check(f'{name}__grad', torch.autograd.grad(loss, x)[0])
        if f'{name}__loss_per_sample' in golden:
            criterion.reduction = 'none'
            golden.check(f'{name}__loss_per_sample', criterion(x, target))

    def number(text):
        return float(text.replace('p', '.').replace('m', '-'))

    compare('balanced_softmax', create_loss('balanced_softmax', counts))
    for tau in ('1p0', '1p5'):
        compare(f'bcl_logit_adjust_tau{tau}', create_loss('logit_adjustment', counts, tau=number(tau)))
    for name, gamma, tau in (
            ('vs_gamma0p05_tau0p75', 0.05, 0.75), ('vs_gamma0p3_tau1', 0.3, 1.0), ('la_tau0p75', 0.0, 0.75)):
        vs = create_loss('vs', counts, gamma=gamma, tau=tau)
        golden.check(f'{name}__delta', vs.delta)
        golden.check(f'{name}__iota', vs.iota)
        compare(name, vs)
    compare('la_tau0p75', create_loss('logit_adjustment', counts, tau=0.75))

    class PriorPlus(nn.Module):
        reduction = 'mean'

        def forward(self, x, y):
            prior = counts.double() / counts.sum()
            return logit_adjustment_loss(x, y, (prior + 1e-9).log(), reduction=self.reduction)

    compare('la_prior_plus_1em9', PriorPlus())

    # LDAM and deferred re-weighting
    ldam = create_loss('ldam', counts)
    golden.check('ldam__margins', ldam.margins)
    compare('ldam', ldam, 'cosine')

    class ScaledLogits(nn.Module):
        reduction = 'mean'

        def forward(self, x, y):
            return ldam(x / ldam.scale, y, self.reduction)

    compare('ldam_scaled_logits', ScaledLogits(), 'cosine', lambda x: 30 * x)
    for name, source, criterion in (('ldam_drw', 'cosine', ldam), ('ce_drw', 'logits', nn.CrossEntropyLoss())):
        drw = DeferredReweighting(criterion, counts, start_epoch=160)
        for key in golden.keys('drw_class_weights_epoch'):
            epoch = int(key.removeprefix('drw_class_weights_epoch'))
            drw.set_epoch(epoch)
            weight = criterion.class_weight if criterion is ldam else criterion.weight
            golden.check(key, torch.ones(len(counts)) if weight is None else weight)
        drw.set_epoch(160)
        compare(name, criterion, source)

    for gamma in (1, 2):
        compare(f'focal_gamma{gamma}', create_loss('focal', gamma=gamma))
        compare(
            f'focal_weighted_gamma{gamma}',
            create_loss('focal', gamma=gamma, variant='released', class_weight=drw_class_weights(counts)))

    # GCL with the stored draws
    noise = golden['gcl__raw_noise']
    logs = counts.double().log()
    golden.check('gcl__m_list', logs.max() - logs)
    settings = {
        'gcl_mul1_m0_s30': dict(noise_factor=1.0),
        'gcl_mul0p5_m0_s30': dict(noise_factor=0.5),
        'gcl_mul1_m0p1_s30': dict(noise_factor=1.0, margin=0.1),
        'gcl_no_noise_m0_s30': dict(noise_factor=0.0),
        'gcl_stage2_focal1_mul0p5_m0p1_s20': dict(noise_factor=0.5, margin=0.1, scale=20.0, focal_gamma=1.0),
    }
    for name, options in settings.items():
        gcl = create_loss('gcl', counts, **options)
        compare(name, lambda x, y, gcl=gcl: gcl_loss(
            x, y, gcl.cloud, noise, gcl.scale, gcl.noise_factor, gcl.margin, gcl.focal_gamma), 'cosine')

    for shape in ('concave', 'linear', 'convex', 'exp', 'concave_0p4_0p1'):
        head, tail = (0.4, 0.1) if '_' in shape else (0.3, 0.0)
        las = create_loss('las', counts, smooth_head=head, smooth_tail=tail, shape=shape.split('_')[0])
        golden.check(f'las_{shape}__smooth', las.smooth)
        compare(f'las_{shape}', las)

    for name in {key.removesuffix('__loss') for key in golden.keys('cb_', '__loss')}:
        form, beta, *gamma = name.removeprefix('cb_').split('_')
        options = {'gamma': number(gamma[0].removeprefix('gamma'))} if gamma else {}
        loss = create_loss(
            'class_balanced', counts, form=form, beta=number(beta.removeprefix('beta')), variant='released', **options)
        weights = f'cb_class_weights_{beta}'
        if weights in golden:
            golden.check(weights, loss.balance_weight)
        compare(name, loss)

    # EQL with the stored draws
    drop = golden['eql__drop_mask']
    for name in ('eql', 'eql_lambda_default'):
        eql = create_loss('eql', counts, threshold=golden[f'{name}__lambda'])
        golden.check(f'{name}__rare_classes', eql.rare)

        class WithDraws(nn.Module):
            reduction = 'mean'

            def forward(self, x, y, rare=eql.rare):
                return eql_loss(x, y, rare, drop, self.reduction)

        compare(name, WithDraws())
    assert create_loss('eql', counts).threshold == golden['eql_lambda_default__lambda']
