"""GALA as released, step by step, with frozen and with trained weights.

The released C x C accumulators are rebuilt here from the logit gradient that our loss gives; the vectors that our loss
keeps are compared with them.
"""

import torch
import torch.nn.functional as F

from timm_lt.losses import GALALoss


def check(golden):
    num_classes = golden['num_classes']
    features, targets = golden['features'], golden['targets']
    steps, batch = targets.shape
    lambda1, lambda2, epsilon = golden['hp_lambda1'], golden['hp_lambda2'], golden['hp_epsilon']
    lr, momentum, decay = golden['hp_lr'], golden['hp_momentum'], golden['hp_weight_decay']
    period = golden['hp_steps_per_epoch']

    for run in ('frozen', 'trained'):
        weight = golden['init_weight'].requires_grad_()
        bias = golden['init_bias'].requires_grad_()
        optimizer = torch.optim.SGD([weight, bias], lr=lr, momentum=momentum, weight_decay=decay)
        loss_fn = GALALoss([1] * num_classes, lambda1=lambda1, lambda2=lambda2, epsilon=epsilon, variant='released')
        single = torch.zeros(num_classes, num_classes, dtype=torch.float64)  # [classifier, sample class]
        double = torch.zeros_like(single)
        negative = torch.zeros_like(single)  # [sample class, classifier], emptied every epoch
        off_diagonal = ~torch.eye(num_classes, dtype=torch.bool)
        got = {}
        for t in range(steps):
            x, y = features[t], targets[t]
            before = loss_fn.margin_sum.clone()
            logits = F.linear(x, weight, bias)
            logits.retain_grad()
            loss = loss_fn(logits, y)
            optimizer.zero_grad()
            loss.backward()
            if run == 'trained':
                optimizer.step()

            # the loss leaves out the part that is one number per row
            log_sum = torch.log(before + epsilon)
            gradient = logits.grad
            single.index_add_(1, y, gradient.abs().T)
            double += single
            if t % period == 0:
                negative.zero_()
            negative.index_add_(0, y, gradient.abs())
            row_sum = (double * off_diagonal).sum(1)
            kept = loss_fn.margin_sum
            values = {
                'raw_logits': logits,
                'adjusted_logits': logits + lambda1 * log_sum - lambda2 * log_sum[y][:, None],
                'loss': loss,
                'logit_grad': gradient,
                'A_classifier_by_sample_class': single,
                'accum_cls_pos_grad': kept,
                'accum_sample_pos_grad': kept,
                'accum_sample_neg_grad': kept,
                'accum_cls_neg_grad': row_sum,
                'cls_pos_neg_ratio': (kept + 1e-10) / (row_sum + 1e-10),
                'accum_neg_logit_grad_epoch': negative,
            }
            if run == 'trained':
                values |= {'weight_after_step': weight, 'bias_after_step': bias}
            for key, value in values.items():
                got.setdefault(key, []).append(value.detach().clone())
        for key, value in got.items():
            golden.check(f'{run}__{key}', torch.stack(value))

        # in evaluation the logits are not adjusted
        loss_fn.eval()
        logits = F.linear(features[0], weight, bias)
        golden.check(f'{run}__eval_logits_on_step0_features', logits)
        torch.testing.assert_close(loss_fn(logits, targets[0]), F.cross_entropy(logits, targets[0]))
