"""`python -m lensml VERB` = `lensml VERB`."""

import sys

from lensml.cli import main

if __name__ == "__main__":
    sys.exit(main())
