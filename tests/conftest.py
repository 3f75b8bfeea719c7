"""Random examples: the same ones in every run, new ones in `make fuzz`; what failed once is tried first."""

from pathlib import Path

from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

FAILURES = DirectoryBasedExampleDatabase(Path(__file__).with_name("failures"))
settings.register_profile("fixed", database=FAILURES, derandomize=False)
settings.register_profile("fuzz", database=FAILURES, derandomize=False, max_examples=500)
settings.load_profile("fixed")
