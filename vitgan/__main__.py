"""`python -m vitgan` is the command line."""

import sys

from vitgan.cli import main

sys.exit(main())
