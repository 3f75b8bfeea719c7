import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def no_anomaly_detection():
    """RecBole's SINE module, if another test's import has loaded it, turns it on for the whole process: everything is
    slow from then on."""
    torch.autograd.set_detect_anomaly(False)
