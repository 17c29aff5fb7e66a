"""``python -m vtx`` is the command ``vtx``."""

import sys

from vtx.cli import main

if __name__ == "__main__":
    sys.exit(main())
