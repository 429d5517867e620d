"""``python -m kitsseg``, for where the command itself is not on the path."""

import sys

from kitsseg.cli import main

sys.exit(main())
