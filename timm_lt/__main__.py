"""``python -m timm_lt``: the command ``timm-lt``."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
