"""`python -m windlass`: the command line."""

import sys

from windlass.apps.cli import main

sys.exit(main())
