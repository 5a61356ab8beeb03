#!/usr/bin/env python3
"""Train and evaluate a timm model on long-tailed images: ``accelerate launch train_lt.py [--config FILE] [options]``.

Everything is in ``timm_lt.training``; ``python train_lt.py --help`` lists the options.
"""

import sys

from timm_lt.training import main

if __name__ == '__main__':
    sys.exit(main())
