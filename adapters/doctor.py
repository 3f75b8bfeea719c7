"""What ``recplug doctor`` says: each part of the installation, what was found, and what to do about it."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

RECBOLE = "1.2.1"
# The torchvision release that belongs to a torch release is 15 minor versions apart, and one major behind.
VISION_OFFSET = 15
# The libraries behind `recplug features extract --encoder`, by the names that pip knows.
ENCODERS = ("open_clip_torch", "transformers", "sentence-transformers")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: ``ok``; ``note`` for what some uses need; ``problem`` for what has to be mended.
        found: what was found.
        advice: what to do; empty where nothing is to do.
    """

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def report() -> list[Finding]:
    """Look at everything; nothing is changed, and a check that fails itself is reported as a problem."""
    findings: list[Finding] = []
    for check in (_python, _stack, _recbole, _ray, _remedies, _torchvision, _encoders, _extras, _data, _plugins):
        findings += _guarded(check)
    return findings


def _guarded(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:
        name = check.__name__.lstrip("_")
        return [Finding(name, "problem", _one_line(error), "mend this first; --debug shows where it comes from")]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "RecplugError" else f"{type(error).__name__}: {text}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _python() -> list[Finding]:
    found = f"{platform.python_version()} on {platform.system()}"
    if sys.version_info >= (3, 14):
        return [Finding("python", "note", found, "untested; Python 3.10 to 3.13 are tested")]
    return [Finding("python", "ok", found)]


def _stack() -> list[Finding]:
    import torch

    device = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no CUDA device, runs on the CPU"
    findings = [Finding("torch", "ok", f"{torch.__version__}, {device}")]
    for name in ("numpy", "pandas", "scipy"):
        version = _version(name)
        if version is None:
            findings.append(Finding(name, "problem", "not installed", f"pip install {name}"))
        else:
            findings.append(Finding(name, "ok", version))
    return findings


def _recbole() -> list[Finding]:
    install = f"pip install recbole=={RECBOLE}"
    if sys.version_info >= (3, 12):
        install = f"pip install --no-deps recbole=={RECBOLE} (its requirement on ray has no release for this Python)"
    version = _version("recbole")
    if version is None:
        return [Finding("recbole", "problem", "not installed", install)]
    try:
        for part in ("config", "data", "model", "trainer", "utils"):
            importlib.import_module(f"recbole.{part}")
    except Exception as error:
        advice = "install the missing package"
        if not isinstance(error, ModuleNotFoundError):
            advice = f"reinstall it: {install}"
        return [Finding("recbole", "problem", f"{version} does not import ({_one_line(error)})", advice)]
    if version != RECBOLE:
        return [Finding("recbole", "note", version, f"recplug is tested with {RECBOLE}: {install}")]
    return [Finding("recbole", "ok", version)]


def _ray() -> list[Finding]:
    version = _version("ray")
    return [Finding("ray", "ok", f"{version or 'not installed'}; irrelevant, recplug never imports it")]


def _remedies() -> list[Finding]:
    if _version("recbole") is None:
        return [Finding("remedies", "note", "not looked at without RecBole", "install RecBole first")]
    from recplug.adapters.recbole.compat.remedies import REMEDIES

    return [
        Finding(f"remedy: {remedy.name}", "ok", f"{'active' if remedy.needed() else 'not needed here'}; {remedy.why}")
        for remedy in REMEDIES
    ]


def _torchvision() -> list[Finding]:
    version = _version("torchvision")
    if version is None:
        return [
            Finding(
                "torchvision",
                "note",
                "not installed",
                "only for image features: pip install -c constraints.txt 'recplug[clip]'",
            )
        ]
    # In a process of its own: what an import leaves behind, or leaves out, stays there.
    script = "from recplug.adapters.optional_imports import torchvision; print(torchvision())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Finding("torchvision", "problem", f"{version} does not load ({reason})", _vision_advice())]
    if done.stdout.split()[-1] == "whole":
        return [Finding("torchvision", "ok", f"{version} loads")]
    found = (
        f"{version}, compiled part missing next to torch {_version('torch')}; remedied, recplug's encoders work without"
        " it (https://github.com/pytorch/vision/issues/8985)"
    )
    return [Finding("torchvision", "note", found, f"other programs need it: {_vision_advice()}")]


def _vision_advice() -> str:
    major, minor, *_ = (int(part) for part in re.findall(r"\d+", metadata.version("torch")))
    build = metadata.version("torch").partition("+")[2]
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"torch and torchvision are a pair: pip install torchvision=={major - 2}.{minor + VISION_OFFSET}.0{index}"


def _encoders() -> list[Finding]:
    found = [f"{name} {_version(name) or 'not installed'}" for name in ENCODERS]
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    where = "HF_HUB_OFFLINE is set, so only folders and the cache" if offline else "folders, the cache and the hub"
    return [Finding("encoders", "ok", f"{', '.join(found)}; models from {where}")]


def _extras() -> list[Finding]:
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires("recplug") or []:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if extra and name:
            wanted.setdefault(extra[1], []).append(name[0])
    findings = []
    for extra_name, distributions in wanted.items():
        missing = [name for name in distributions if _version(name) is None]
        if missing:
            advice = f"where you need it: pip install -c constraints.txt 'recplug[{extra_name}]'"
            findings.append(Finding(f"extra: {extra_name}", "note", f"missing {', '.join(missing)}", advice))
        else:
            findings.append(Finding(f"extra: {extra_name}", "ok", "installed"))
    return findings


def _data() -> list[Finding]:
    from recplug.adapters.data import bundled

    findings = []
    for name, data_set in bundled().items():
        # Whole, or as a ready-made split.
        if any(any(data_set.directory.glob(pattern)) for pattern in (f"{name}.inter", f"{name}.*.inter")):
            findings.append(Finding(f"data: {name}", "ok", "bundled"))
        else:
            findings.append(Finding(f"data: {name}", "problem", "its files are not there", "reinstall recplug"))
    return findings


def _plugins() -> list[Finding]:
    from recplug.plugins.registry import available

    names = ", ".join(sorted(available()))
    if names:
        return [Finding("plugins", "ok", names)]
    return [Finding("plugins", "problem", "none is installed", "reinstall recplug, or look at RECPLUG_PLUGINS")]
