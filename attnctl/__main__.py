"""Run the command line with ``python -m attnctl``."""

import sys

from attnctl.cli import main

sys.exit(main())
