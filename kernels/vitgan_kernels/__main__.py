"""`python -m vitgan_kernels` says what of the package works here, and what to do about the rest."""

import sys

from vitgan_kernels.doctor import main

sys.exit(main())
