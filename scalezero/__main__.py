"""`python -m scalezero` is the command `scalezero`."""

import sys

from scalezero.cli import main

if __name__ == "__main__":
    sys.exit(main())
