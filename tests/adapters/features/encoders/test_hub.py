"""Models of a hub: a server on loopback that speaks what downloads need of its protocol, asked by real processes."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save_file

from recplug.adapters.features.encoders import open_encoder
from recplug.adapters.features.encoders.hub import find, weights_hash
from recplug.plugins.errors import RecplugError

NEW, OLD = "a" * 40, "b" * 40  # commits
SCRIPT = """
import json, sys
from recplug.adapters.features.encoders import open_encoder
from recplug.plugins.errors import RecplugError
for spec, modality, revision in json.load(sys.stdin):
    try:
        encoder = open_encoder(spec, modality, revision=revision, device="cpu")
        said = [encoder.name, encoder.revision, encoder.encode(encoder.prepare(["a red chair"]))[0].tolist()]
    except RecplugError as error:
        said = str(error)
    print("said:", json.dumps(said))
"""


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with folders by commit; the branch ``main`` is :data:`NEW`."""

    def __init__(self):
        self.repositories = {}
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), parts[4:])
            return
        commits = self.server.repositories.get("/".join(parts[:2]))
        revision, file = parts[3], "/".join(parts[4:])
        commit = NEW if revision == "main" else revision
        if commits is None:
            self.refuse("RepoNotFound")
        elif commit not in commits:
            self.refuse("RevisionNotFound")
        elif not (commits[commit] / file).is_file():
            self.refuse("EntryNotFound", commit)
        else:
            content = (commits[commit] / file).read_bytes()
            etag = f'"{commit[:4]}-{file.replace("/", "-")}"'
            self.send(200, content if body else b"", len(content), {"X-Repo-Commit": commit, "ETag": etag})

    def describe(self, repository, rest):
        commits = self.server.repositories.get(repository)
        revision = rest[1] if len(rest) > 1 else "main"
        commit = NEW if revision == "main" else revision
        if commits is None or commit not in commits:
            self.refuse("RepoNotFound" if commits is None else "RevisionNotFound")
            return
        files = sorted(path for path in commits[commit].rglob("*") if path.is_file())
        names = [str(path.relative_to(commits[commit])) for path in files]
        if rest and rest[0] == "tree":
            sizes = [path.stat().st_size for path in files]
            rows = [
                {"type": "file", "path": name, "size": size, "oid": f"{commit[:4]}-{name.replace('/', '-')}"}
                for name, size in zip(names, sizes, strict=True)
            ]
            content = json.dumps(rows).encode()
        else:
            siblings = [{"rfilename": name} for name in names]
            content = json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()
        self.send(200, content, len(content), {"Content-Type": "application/json"})

    def refuse(self, code, commit=None):
        headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": commit} if commit else {})
        self.send(404, b"", 0, headers)

    def send(self, status, content, length, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub(model_folders, tiny_clip, tmp_path_factory):
    from sentence_transformers import SentenceTransformer

    modules = importlib.import_module("sentence_transformers.models")
    place = tmp_path_factory.mktemp("served")
    bert = model_folders("bert")
    sentences = place / "sentences"
    SentenceTransformer(modules=[modules.Transformer(str(bert)), modules.Pooling(16)], device="cpu").save(
        str(sentences)
    )
    clip = place / "clip"
    clip.mkdir()
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_clip[2], "preprocess_cfg": {}}))
    save_file(torch.load(tiny_clip[1]), clip / "open_clip_model.safetensors")
    server = Hub()
    server.repositories = {
        "me/bert": {NEW: bert, OLD: shutil.copytree(model_folders("roberta"), place / "old")},
        "me/clip": {NEW: clip},
        "sentence-transformers/small": {NEW: sentences},
    }
    yield server
    server.shutdown()
    server.server_close()


def asked(wishes, cache, **environment):
    """What a process says that opens encoders: name, revision and a vector of each, or the error's one line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(wishes),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line.removeprefix("said: ")) for line in done.stdout.splitlines() if line.startswith("said: ")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


HAVE = [
    ["transformers:me/bert", "text", None],
    ["transformers:me/bert", "text", OLD],
    ["open_clip:hf-hub:me/clip", "text", None],
    ["sentence-transformers:small", "text", None],
]


@pytest.fixture(scope="module")
def online(hub, cache):
    """What a process with a network says."""
    lacks = [
        ["transformers:me/nothing", "text", None],
        ["transformers:me/bert", "text", "c" * 40],
        ["sentence-transformers:me/bert", "text", None],
        ["transformers:two words", "text", None],
    ]
    return asked(HAVE + lacks, cache, HF_ENDPOINT=hub.url)


def test_models_of_the_hub_are_opened_and_their_commit_is_known(online, hub):
    bert, old, clip, sentences = online[:4]
    assert bert[:2] == ["transformers:me/bert", NEW]
    assert old[:2] == ["transformers:me/bert", OLD]
    assert clip[:2] == ["open_clip:hf-hub:me/clip", NEW]
    assert sentences[:2] == ["sentence-transformers:small", NEW]
    for (name, commit), found in {("me/bert", NEW): bert, ("me/bert", OLD): old}.items():
        local = open_encoder(f"transformers:{hub.repositories[name][commit]}", "text", device="cpu")
        assert local.encode(local.prepare(["a red chair"]))[0].tolist() == found[2]


def test_what_the_hub_does_not_have_is_said_in_one_line(online):
    assert online[4:] == [
        "me/nothing is not on the hub, or is private; look at the spelling, or set HF_TOKEN",
        f"me/bert@{'c' * 40} is a revision that the hub does not have; leave --revision out, or give a branch, tag or"
        " commit",
        "me/bert has no modules.json; it is another kind of model",
        "two words is neither a folder nor a hub id; give a folder, or ORG/NAME",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("wishes", [HAVE[:2], HAVE[2:]], ids=["transformers", "others"])
def test_without_a_network_the_cache_is_enough(online, cache, wishes):
    told = asked([*wishes, ["transformers:me/other", "text", None]], cache, HF_HUB_OFFLINE="1")
    assert told[:-1] == [online[HAVE.index(wish)] for wish in wishes]
    assert told[-1] == (
        "me/other is not in the cache (config.json), and HF_HUB_OFFLINE is set;"
        " give a folder, or fetch it with a network"
    )


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(online, cache):
    """Nobody listens on the port."""
    told = asked([HAVE[0], ["transformers:me/other", "text", None]], cache, HF_ENDPOINT="http://127.0.0.1:9")
    assert told[0] == online[0]
    assert told[1].startswith("me/other is not in the cache (config.json), and the hub cannot be reached")


def test_folders(tmp_path):
    for given in ("./nowhere", str(tmp_path / "nowhere"), "a/b/c", "~/nowhere-at-all"):
        with pytest.raises(RecplugError, match="there is no folder"):
            find(given, must_have="config.json")
    with pytest.raises(RecplugError, match=r"no config\.json; the folder is incomplete"):
        find(str(tmp_path), must_have="config.json")
    (tmp_path / "config.json").touch()
    with pytest.raises(RecplugError, match="leave --revision out"):
        find(str(tmp_path), must_have="config.json", revision="main")
    assert find(str(tmp_path), must_have="config.json").name == tmp_path.name


def test_the_hash_is_of_the_weights_that_are_read(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = weights_hash(tmp_path)
    said = subprocess.run(["sha256sum", weights], capture_output=True, text=True, check=True).stdout
    assert first == f"sha256:{said[:16]}"
    for beside in ("README.md", "pytorch_model.bin", "onnx/model.bin", "training_args.bin"):
        Path(tmp_path / beside).parent.mkdir(exist_ok=True)
        (tmp_path / beside).write_bytes(b"two")
    assert weights_hash(tmp_path) == first
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"three")
    both = weights_hash(tmp_path)
    assert both != first
    weights.write_bytes(b"four")
    assert weights_hash(tmp_path) not in (both, first)
