import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from recplug.adapters.features import FeatureTable
from recplug.adapters.features.extraction import download, image_items
from recplug.adapters.features.extraction.download import fetch, fetch_all


class Server:
    """Pictures on loopback: ``/COLOUR.png``; other paths misbehave as they are called."""

    def __init__(self):
        self.asked = []
        self.mended = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.asked.append(self.path)
                name = self.path.strip("/").partition(".")[0]
                times = outer.asked.count(self.path)
                if name == "404" or (name in ("500", "busy") and (name == "500" or times < 3)):
                    self.send_error({"404": 404, "500": 500, "busy": 503}[name])
                elif name == "page" and not outer.mended:
                    self.answer(b"<html>sorry</html>")
                elif name == "short" and times < 2:
                    self.answer(b"1234", length=1_000)
                elif name == "claims":
                    self.answer(b"1234", length=10**9)
                elif name == "endless":
                    self.send_response(200)
                    self.end_headers()
                    try:
                        while True:
                            self.wfile.write(bytes(1 << 16))
                    except OSError:
                        outer.asked.append("/closed")
                elif name == "moved":
                    self.send_response(302)
                    self.send_header("Location", "/blue.png")
                    self.end_headers()
                elif name == "elsewhere":
                    self.send_response(302)
                    self.send_header("Location", "file:///etc/passwd")
                    self.end_headers()
                else:
                    file = io.BytesIO()
                    Image.new("RGB", (9, 9), "green" if name == "page" else name.partition("%")[0]).save(file, "PNG")
                    self.answer(file.getvalue())

            def answer(self, data, length=None):
                self.send_response(200)
                self.send_header("Content-Length", str(length or len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.base = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "*")
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


@pytest.mark.parametrize("name", ["red.png", "moved", "busy.png", "short.png", "red ü%20x.png?a=1&b=[2]"])
def test_what_can_be_had_is_had_and_kept(server, tmp_path, name, monkeypatch):
    if name in ("busy.png", "short.png"):  # after these, the server draws a colour
        monkeypatch.setattr(Image, "new", lambda mode, size, colour, new=Image.new: new(mode, size, "red"))
    file = fetch(f"{server.base}/{name}", tmp_path)
    assert Image.open(file).size == (9, 9)
    asked = len(server.asked)
    assert fetch(f"{server.base}/{name}", tmp_path) == file
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("name", "reason", "requests"),
    [
        ("404", "HTTP 404", 1),
        ("500", "HTTP 500, 3 times", 3),
        ("claims", "1,000,000,000 bytes, more than", 1),
        ("endless", "more than 30,000,000 bytes", 1),
        ("elsewhere", "HTTP 302", 1),
    ],
)
def test_what_cannot_be_had_is_told(server, tmp_path, name, reason, requests):
    found = fetch(f"{server.base}/{name}", tmp_path)
    assert isinstance(found, str)
    assert found.startswith(reason)
    assert server.asked.count(f"/{name}") == requests
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_picture_that_comes_too_slowly_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WHOLE", -1.0)
    assert fetch(f"{server.base}/red.png", tmp_path) == "not there after -1 seconds"


def test_nobody_there_and_no_address(tmp_path, server):
    server.http.shutdown()
    server.http.server_close()
    assert fetch(f"{server.base}/red.png", tmp_path).endswith("3 times")
    assert "Error" in fetch("http://[::1", tmp_path) or "Invalid" in fetch("http://[::1", tmp_path)


def test_a_cache_that_cannot_be_written_is_told(server, tmp_path, told):
    (tmp_path / "file").write_text("")
    told(lambda: fetch(f"{server.base}/red.png", tmp_path / "file"), "cannot write", "RECPLUG_CACHE")


def test_one_address_of_many_items_is_asked_once(server, tmp_path):
    found = fetch_all(dict.fromkeys(range(20), f"{server.base}/red.png"), tmp_path)
    assert len(set(found.values())) == 1
    assert server.asked == ["/red.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_column_of_addresses_becomes_a_table(server, tmp_path, monkeypatch, run, workers):
    monkeypatch.setenv("RECPLUG_CACHE", str(tmp_path / "cache"))
    names = ["red", "404", "page", "blue", "red", "page"]
    rows = [f"t{i}\t{server.base}/{name}.png" for i, name in enumerate(names)]
    (tmp_path / "w.item").write_text("\n".join(["item_id:token\turl:token", *rows]) + "\n")
    items = image_items(tmp_path, "w", "url")
    output = tmp_path / "w.image.safetensors"
    report = run("image", output, items=items, workers=workers, batch=6)
    assert {item.token: item.reason.partition(":")[0] for item in report.missing} == {
        "t1": "HTTP 404",
        "t2": "UnidentifiedImageError",
        "t5": "UnidentifiedImageError",
    }
    assert report.missing[0].file == f"{server.base}/404.png"
    asked = server.asked.count("/red.png")
    server.mended = True
    run("image", output, items=items, workers=workers, batch=6, retry_broken=True)
    assert FeatureTable.load(output).tokens == ("t0", "t2", "t3", "t4", "t5")
    assert server.asked.count("/red.png") == asked == 1
