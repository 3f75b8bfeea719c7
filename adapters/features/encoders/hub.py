"""Where a model lies: a folder on this machine, or the Hugging Face hub and its cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recplug.plugins.errors import RecplugError, one_line

DIGITS = 16  # of a sha256: two files of one name are told apart
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".npz")
# Weights in these forms are never read here.
_OTHER_FORMS = {"onnx", "openvino", "coreml", "training_args.bin", "optimizer.pt", "scheduler.pt"}


@dataclass(frozen=True)
class Source:
    """A model that was found.

    Attributes:
        given: as it was asked for.
        where: a folder, or a hub id.
        commit: of the hub's model; None for a folder.
    """

    given: str
    where: str
    commit: str | None

    @property
    def name(self) -> str:
        """The hub id as given, or the folder's name, which does not depend on where it lies."""
        return self.given if self.commit else Path(self.where).name

    def revision(self) -> str:
        """The commit, or what tells the folder's weights apart."""
        return self.commit or weights_hash(Path(self.where))


def find(given: str, *, must_have: str, revision: str | None = None, hub_id: str | None = None) -> Source:
    """Find a model.

    Args:
        given: a folder, or a hub id.
        must_have: a file that every such model has.
        revision: of the hub's model: branch, tag or commit.
        hub_id: the hub's name for it, if it is not ``given``.

    Raises:
        RecplugError: where it cannot be had, saying why.
    """
    if not given:
        raise RecplugError("the encoder names no model; give a folder, or a hub id like ORG/NAME")
    folder = Path(given).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise RecplugError(f"{given} is a folder, and revisions belong to the hub; leave --revision out")
        if not (folder / must_have).is_file():
            raise RecplugError(f"{given} has no {must_have}; the folder is incomplete, or of another kind of model")
        return Source(given, str(folder.resolve()), None)
    if given.startswith((".", "/", "~", os.sep)) or given.count("/") > 1:
        raise RecplugError(f"there is no folder {given}; give a folder with {must_have}, or a hub id like ORG/NAME")
    repository = hub_id or given
    path = fetch(repository, must_have, revision=revision)
    return Source(given, repository, commit_of(path) or revision)


def fetch(repository: str, *filenames: str, revision: str | None = None) -> Path:
    """The first of some files that the hub has, from its cache where it is there.

    Raises:
        RecplugError: where none can be had, saying why.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    problem, unreachable = "", False
    for filename in filenames:
        try:
            # Finding out that there is no network takes half a minute; once is enough.
            return Path(hf_hub_download(repository, filename, revision=revision, local_files_only=unreachable))
        except HFValidationError:
            problem = "is neither a folder nor a hub id; give a folder, or ORG/NAME"
        except GatedRepoError:
            problem = "is open only to those who asked; accept its terms on the hub, then `hf auth login`"
        except RepositoryNotFoundError:
            problem = "is not on the hub, or is private; look at the spelling, or set HF_TOKEN"
        except RevisionNotFoundError:
            problem = "is a revision that the hub does not have; leave --revision out, or give a branch, tag or commit"
        except LocalEntryNotFoundError:
            unreachable = True
            offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
            problem = f"is not in the cache ({filename}), and {offline}; give a folder, or fetch it with a network"
        except EntryNotFoundError:
            problem = f"has no {filename}; it is another kind of model"
        except Exception as error:  # the hub's HTTP client changes from release to release, and so do its errors
            problem = f"cannot be read from the hub ({one_line(error)[:200]}); try again, or give a folder"
    raise RecplugError(f"{repository if revision is None else f'{repository}@{revision}'} {problem}")


def weights_hash(place: Path) -> str:
    """``sha256:`` and the first digits of the hash of a file, or of a folder's weights."""
    files = [place] if place.is_file() else _weights(place)
    digests = [_sha256(file) for file in files]
    if len(digests) != 1:  # one file keeps the hash that everyone knows it by
        digests = [hashlib.sha256("\n".join(digests).encode()).hexdigest()]
    return f"sha256:{digests[0][:DIGITS]}"


def _sha256(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def _weights(folder: Path) -> Sequence[Path]:
    """The folder's weights; where some are safetensors, in each folder only those, as the libraries prefer them."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in _WEIGHTS and not _OTHER_FORMS & set(path.relative_to(folder).parts)
    ]
    safe = {path.parent for path in found if path.suffix == ".safetensors"}
    return [path for path in found if path.suffix == ".safetensors" or path.parent not in safe]


def commit_of(path: Path) -> str | None:
    """The commit in the hub cache's path, ``.../snapshots/COMMIT/FILE``."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
