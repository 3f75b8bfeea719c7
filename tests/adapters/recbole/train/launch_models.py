"""A script: one of these models in two processes, as the command line starts them."""

import os
import signal
import sys
from pathlib import Path

from recbole.model.general_recommender import BPR

from recplug.adapters.console import command, show_log
from recplug.adapters.recbole.train.launch import launch
from recplug.plugins.errors import RecplugError


def is_second():
    """Told after this file is imported."""
    return os.environ["RANK"] == "1"


class Well(BPR):
    """Ends."""


class Failing(BPR):
    """The second process fails in its second epoch."""

    epochs = 0

    def train(self, mode=True):
        self.epochs += mode
        if is_second() and self.epochs > 2:
            raise ValueError("the second process cannot\ngo on")
        return super().train(mode)


class Killed(Failing):
    """The second process is killed there, as for want of memory."""

    def train(self, mode=True):
        if is_second() and self.epochs > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(mode)


class Refusing(BPR):
    """The second process finds its input wrong, before it meets the first."""

    def __init__(self, config, dataset):
        if is_second():
            raise RecplugError("this machine's data are others; copy them")
        super().__init__(config, dataset)


class Waiting(BPR):
    """Trains until it is stopped; says on the way that both are at it."""

    def calculate_loss(self, interaction):
        (Path(os.environ["MARKS"]) / f"training-{os.environ['RANK']}").touch()
        return super().calculate_loss(interaction)


@command
def main(words):
    """MODEL FOLDER OUTPUT EPOCHS."""
    model, folder, output, epochs = words[:4]
    small = {
        "embedding_size": 8,
        "epochs": int(epochs),
        "train_batch_size": 64,
        "use_gpu": False,
        "stopping_step": 10**6,
    }
    small |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "state": "ERROR", "show_progress": False}
    arguments = {"model": globals()[model], "dataset": "tiny", "config_dict": small, "data_path": folder}
    found = launch({**arguments, "output_dir": output}, nproc=2, first=show_log)
    print("result", sorted(found.result), found.model, found.directory)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    main(sys.argv[1:])
