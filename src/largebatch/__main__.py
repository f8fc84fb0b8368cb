"""``python -m largebatch``, which is also what torchrun starts."""

import sys

from largebatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
