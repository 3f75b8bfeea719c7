"""One run or its resumption in a process of its own, which ends where it is told to; started by ``test_resume.py``.

``JOB`` says what: ``function`` (run, resume), its ``arguments``, ``kill_at`` (the event at which this process kills
itself: before or after a file takes its place, and before an optimiser's step), ``full_after`` (the epoch after which
nothing larger than 40 kB can be written), and ``answer``, a file for the number of events or the error.
"""

import json
import os
import resource
import signal
from pathlib import Path

import torch
from recbole.trainer import Trainer

from recplug.adapters.recbole.state import run_directory
from recplug.adapters.recbole.train.resume import resume
from recplug.adapters.recbole.train.run import run

job = globals()["JOB"]
events = 0


def tick():
    global events
    events += 1
    if events == job["kill_at"]:
        os.kill(os.getpid(), signal.SIGKILL)


def around(function):
    def called(*args, **kwargs):
        tick()
        found = function(*args, **kwargs)
        tick()
        return found

    return called


def fills(function):
    def called(self, data, epoch, *args, **kwargs):
        if epoch == job["full_after"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        return function(self, data, epoch, *args, **kwargs)

    return called


torch.set_num_threads(1)
run_directory.draw = lambda panel, path: path.touch()  # pictures take longer than these trainings
answer, replace = Path(job["answer"]), os.replace
os.replace = around(os.replace)
torch.optim.Adam.step = around(torch.optim.Adam.step)
Trainer._train_epoch = fills(Trainer._train_epoch)
try:
    {"run": run, "resume": resume}[job["function"]](**job["arguments"])
    found = {"events": events}
except Exception as error:
    found = {"error": str(error), "kind": type(error).__name__}
part = answer.with_suffix(".part")
part.write_text(json.dumps(found))
replace(part, answer)
