"""Downloaded corpora: without a network, from the cache, from the Hugging Face hub, resumed and verified."""

import hashlib
import http.client
import http.server
import sys
import threading

import numpy as np
import pytest
from data_files import load, marked, text_file

from slm_np.data import download
from slm_np.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "name, kept", [("tinyshakespeare", "tinyshakespeare.txt"), ("tinystories", "TinyStories-train.txt")]
)
def test_without_a_network_the_error_says_where_to_put_the_file(name, kept, cache, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    hub = type(sys)("huggingface_hub")
    hub.hf_hub_download = refuse
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError) as error:
        load(name, progress=True)
    assert str(error.value).startswith(f"--data {name} cannot be downloaded (no network); check the network and try")
    assert ", or put https://" in str(error.value) and str(cache / "downloads" / kept) in str(error.value)
    assert "license" in capsys.readouterr().err
    (cache / "downloads").mkdir(exist_ok=True)
    (cache / "downloads" / kept).write_text("put by hand " * 20, encoding="utf-8")
    (cache / "downloads" / "TinyStories-valid.txt").write_text("held out " * 20, encoding="utf-8")
    found = load(name)
    assert bytes(found.train.ids[:11].astype(np.uint8)) == b"put by hand"
    if name == "tinystories":
        assert bytes(found.validation.ids[:8].astype(np.uint8)) == b"held out"


def test_tinystories_is_downloaded_through_the_hub(tmp_path, cache, monkeypatch):
    asked, hub = [], type(sys)("huggingface_hub")

    def hf_hub_download(repository, name, repo_type):
        asked.append((repository, name, repo_type))
        return text_file(tmp_path, marked([name] * 30), name)

    hub.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = load("tinystories", limit_bytes=200)
    assert asked == [("roneneldan/TinyStories", f"TinyStories-{split}.txt", "dataset") for split in ("train", "valid")]
    assert found.validation.n_documents == 30 and 0 < found.train.n_documents < 10
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError,
        match=r'huggingface_hub, which is not installed; run pip install "slm_np\[hub\]", or put https://\S+ at ',
    ):
        load("tinystories")


class Server(threading.Thread):
    """A local HTTP server that sends `data`, knows ranges, and closes the connection after `most` bytes."""

    def __init__(self, data, most):
        super().__init__(daemon=True)
        self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler):
                self.asked.append(handler.headers.get("Range"))
                start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
                handler.send_response(206 if start else 200)
                handler.send_header("Content-Length", str(len(data) - start))
                handler.end_headers()
                handler.wfile.write(data[start : start + most])

            def log_message(handler, *arguments):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/input.txt"
        self.start()

    def run(self):
        self.server.serve_forever()


def test_a_broken_http_answer_is_one_sentence(monkeypatch):
    def broken(*arguments, **options):
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr(download.urllib.request, "urlopen", broken)
    with pytest.raises(UserError, match=r"--data tinyshakespeare cannot be downloaded \(IncompleteRead.*put https://"):
        load("tinyshakespeare")


def test_a_download_is_resumed_and_verified(tmp_path, monkeypatch):
    data = bytes(range(256)) * 40
    server, path = Server(data, 4000), tmp_path / "downloads" / "t.txt"
    digest = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        with pytest.raises(OSError, match="the connection was lost"):
            download._download(server.url, path, digest, False)
        assert not path.exists()
    download._download(server.url, path, digest, False)
    assert path.read_bytes() == data and server.asked == [None, "bytes=4000-", "bytes=8000-"]
    with pytest.raises(ValueError, match="the checksum of the file is wrong"):
        download._download(Server(data, 10**6).url, tmp_path / "other.txt", "0" * 64, False)
    assert not (tmp_path / "other.txt").exists() and not (tmp_path / "other.txt.part").exists()
    server.server.shutdown()
