"""`python -m pipelines.cli` is `ldm`."""

import sys

from pipelines.cli import main

sys.exit(main())
