"""`python -m ssi`: the command line."""

import signal
import sys

# Ctrl-C while modules load ends us without a traceback; `main` then takes it as it should. Who was
# started in the background ignores it, and goes on to.
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from ssi.cli.main import main

sys.exit(main())
