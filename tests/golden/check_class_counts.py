"""Class sizes of long-tailed sets; classes, largest class, ratio and profile stand in the key."""

import re

from timm_lt.data import long_tailed_counts


def check(golden):
    for key in golden.keys():
        profile, classes, n_max, ratio = re.fullmatch(r'(exp|step)_C(\d+)_nmax(\d+)_r([\d.]+)', key).groups()
        ratio = float(ratio) if '.' in ratio else int(ratio)
        golden.check(key, long_tailed_counts(int(n_max), int(classes), ratio, profile))
