"""`python -m nsflow` is the command `nsflow`."""

import sys

from nsflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
