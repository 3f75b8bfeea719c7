"""
A report
========

One HTML file about a run, to look at, to send, to keep: it fetches nothing and works by itself. This page trains BPR
with MICRec on ``food-small`` beside the bare BPR for a few epochs, and shows the report in a frame; scroll in it. How
little that training was, it cannot know: it is a look at the page, no comparison.

The same from the command line::

    run_recbole --model BPR --plugin micrec --dataset food-small --epochs 6 --baseline true --output_dir run
    recplug report run
"""

# %%
# Train and report
# ----------------
# ``baseline=True`` trains the bare backbone first, with the same budget and seed. What a run lacks, ``write_report``
# says a line each; here nothing.

import html
import tempfile
from pathlib import Path

from recplug.adapters.recbole import run
from recplug.adapters.report import write_report

# sphinx_gallery_thumbnail_path = 'images/report.png'

place = Path(tempfile.mkdtemp())
settings = {"epochs": 6, "learning_rate": 0.005, "train_batch_size": 512, "show_progress": False}
run("BPR", "food-small", "micrec", settings, output_dir=place / "run", baseline=True)
missing = write_report(place / "run", place / "report.html")
page = (place / "report.html").read_text(encoding="utf-8")
print(f"{len(page):,} characters, {len(missing)} things missing")

# %%
# The page
# --------
# First the numbers of both runs and who gains and loses, then curves, what the plugin learned, example users, and every
# setting with where it comes from. Nobody picks the example users: they stand at fixed places of the ranking.


class Frame:
    """A page within this page."""

    def _repr_html_(self):
        style = "width: 100%; height: 40rem; border: 1px solid grey"
        return f'<iframe title="A report" srcdoc="{html.escape(page)}" style="{style}"></iframe>'


Frame()
