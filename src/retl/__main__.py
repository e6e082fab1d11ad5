"""`python -m retl`."""

import sys

from retl.cli import main

if __name__ == "__main__":
    sys.exit(main())
