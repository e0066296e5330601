"""Lets the tests of this folder, and the processes that they start, import the toy model beside them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
