"""`python -m windlass.apps.cli`."""

import sys

from windlass.apps.cli import main

sys.exit(main())
