"""Importing this makes `slm_np` importable: the one of this checkout, before an installed one."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
