"""A worker in a process of its own, which is told its search, how many trials, and options."""

import os
import runpy
from pathlib import Path

conftest = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
output, behaviours, trials, options = GIVEN  # noqa: F821
os.environ["OMP_NUM_THREADS"] = "1"
conftest["Search"](Path(output), Path(behaviours))(trials, **options)
