"""Open-set F-measures: OLTR's, the LT project's, and the textbook precision and recall (equal to OLTR's)."""

import torch

from timm_lt.evaluate.metrics import open_set_counts, open_set_f_measure, open_set_scores, reject


def check(golden):
    logits, labels = golden['logits'], golden['labels']
    scores, predictions = open_set_scores(logits), logits.argmax(1)
    rejected = [reject(predictions, scores, t) for t in golden['thresholds'].tolist()]
    golden.check('predictions_with_rejection', torch.stack(rejected))
    counts = [open_set_counts(r, labels) for r in rejected]
    columns = ('right', 'wrong_kept', 'known_rejected', 'unknown_kept', 'unknown_rejected')
    golden.check(
        'counts_right_wrongkept_knownrejected_unknownkept_unknownrejected',
        [[c[column] for column in columns] for c in counts])
    for key, definition in (
            ('f_measure_oltr', 'oltr'),
            ('f_measure_fp_has_unknown_kept_fn_is_known_rejected', 'oltr'),
            ('f_measure_lt_project', 'without_rejected'),
    ):
        values = torch.tensor([open_set_f_measure(c, definition) for c in counts], dtype=torch.float64)
        # where nothing is right the published forms divide 0 by 0, here F is 0
        golden.check(key, values.where(~torch.isnan(golden[key]), torch.nan))
