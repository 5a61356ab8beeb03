"""Many, medium, few of the four repositories' ``shot_acc``, macro F1.

Published code prints 0 or NaN for a split without a tested class; here it is None, and only that is compared.
"""

import torch
import torch.nn.functional as F

from timm_lt.class_distribution import SPLIT_NAMES
from timm_lt.evaluate import report


def check(golden):
    counts = golden['class_counts']
    predictions, labels = golden['predictions'], golden['labels']
    logits = F.one_hot(predictions, len(counts)).double()
    for rule, prefix in (('gt100_lt20', 'many_gt100_few_lt20'), ('ge100_le20', 'many_ge100_few_le20')):
        result = report(logits, labels, counts, split_rule=rule)
        reference = golden[f'{prefix}__many_medium_few']
        for name, value in zip(SPLIT_NAMES, reference.tolist()):
            if result[name] is None:
                assert value == 0 or value != value, f'{prefix}: {name} is absent here, {value} published'
            else:
                assert abs(result[name] / 100 - value) <= golden.tolerance * abs(value), f'{prefix}: {name}'
        tested = [result['splits'][name]['tested_classes'] for name in SPLIT_NAMES]
        if rule == 'gt100_lt20':
            golden.check(f'{prefix}__classes_per_split', tested)
        else:
            golden.check(f'{prefix}__split_has_classes', [n > 0 for n in tested])
    present = [c for c, accuracy in enumerate(result['per_class']) if accuracy is not None]
    golden.check('present_classes', present)
    accuracies = torch.tensor([result['per_class'][c] for c in present], dtype=torch.float64)
    golden.check('per_class_accuracy_of_present_classes', accuracies / 100)
    golden.check('mean_of_per_class_accuracies', torch.tensor(result['balanced_accuracy'] / 100, dtype=torch.float64))
    golden.check('overall_accuracy', torch.tensor(result['top1'] / 100, dtype=torch.float64))
    golden.check('macro_f1', torch.tensor(result['macro_f1'] / 100, dtype=torch.float64))
