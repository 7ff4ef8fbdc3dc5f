"""Let ``python -m medsam_tune`` do what ``medsam-tune`` does."""

import sys

from medsam_tune.cli import main

if __name__ == "__main__":
    sys.exit(main())
