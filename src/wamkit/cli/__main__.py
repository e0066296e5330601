"""``python -m wamkit.cli``, for where the script ``wam`` is not on the PATH."""

import sys

from wamkit.cli import main

sys.exit(main())
