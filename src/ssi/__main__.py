"""`python -m ssi`: the command line."""

import sys

from ssi.cli.main import main

sys.exit(main())
