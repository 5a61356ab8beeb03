"""``python -m timm_lt.evaluate``."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
