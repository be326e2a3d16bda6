"""Models by name, from a local HTTP server that stands in for the hub. No test uses the network."""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from slm_np.errors import UserError
from slm_np.formats import hub

huggingface_hub = pytest.importorskip("huggingface_hub", reason="models by name need huggingface_hub")

COMMIT = "1" * 40
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickled",
    "onnx/model.onnx": b"another format",
    "README.md": b"text",
}
SHARDED = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": b"1",
    "model-00002-of-00002.safetensors": b"2",
    "consolidated.safetensors": b"3",
}
REPOSITORIES = {
    "org/model": MODEL,
    "org/sharded": SHARDED,
    "org/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a"},
    "org/run": {"run.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w", "metrics.jsonl": b""},
    "org/quantized": {"a-q8_0.gguf": b"GGUF 8", "sub/b.gguf": b"GGUF 4", "README.md": b""},
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"p"},
    "org/text": {"README.md": b"text"},
    "org/bare": {"config.json": b"{}", "model.safetensors": b"w"},
}


class Handler(BaseHTTPRequestHandler):
    """Answers like the hub: /api/models/REPOSITORY[/revision/REVISION] and /REPOSITORY/resolve/REVISION/FILE."""

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.server.paths.append(self.path)
        path = self.path.partition("?")[0].lstrip("/").removeprefix("api/models/")
        org, name, *rest = path.split("/")
        files = REPOSITORIES.get(f"{org}/{name}")
        revision = rest[1] if len(rest) > 1 else "main"
        if files is None or name == self.server.gated:
            code = "GatedRepo" if files is not None else "RepoNotFound"
            return self.send(403 if files is not None else 404, b"{}", {"X-Error-Code": code})
        if revision not in ("main", "v1", COMMIT):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if "/api/" in self.path:
            body = dict(id=f"{org}/{name}", sha=COMMIT, siblings=[dict(rfilename=file) for file in files])
            return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        tag = hashlib.sha256(content).hexdigest()
        return self.send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    def send(self, status, body, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with REPOSITORIES, and an empty cache. `server.paths` are the requested paths."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths, server.gated = [], None
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    point(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    yield server
    server.shutdown()
    server.server_close()


def point(monkeypatch, endpoint):
    """Make huggingface_hub use the server at `endpoint`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def files_of(folder):
    """Names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


# Names


@pytest.mark.parametrize(
    "name, found",
    [
        ("org/model", ("org/model", None, "")),
        ("Org-1/Model.v2_x@v1.0", ("Org-1/Model.v2_x", "v1.0", "")),
        ("org/model@refs/pr/3", ("org/model", "refs/pr/3", "")),
        ("org/model/file.gguf", ("org/model", None, "file.gguf")),
        ("org/model@main/sub/file.gguf", ("org/model", "main", "sub/file.gguf")),
        ("model", None),
        ("/org/model", None),
        ("../org/model", None),
        ("org/model/", ("org/model", None, "")),
        ("org/model/folder", None),
        ("org/../model", None),
        ("org/mod el", None),
        ("org/модель", None),
    ],
)
def test_what_a_name_on_the_hub_looks_like(name, found):
    assert hub.parsed(name) == found


# Downloads


def test_only_what_is_needed_is_downloaded_once(server, monkeypatch, capsys):
    folder = hub.fetch("org/model")
    assert files_of(folder) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert capsys.readouterr().err.startswith("downloading org/model: config.json, tokenizer.json")
    server.paths.clear()
    assert hub.fetch("org/model") == folder and server.paths == []  # from the cache, without a request


def test_shards_of_the_index(server):
    folder = hub.fetch("org/sharded")
    assert "consolidated.safetensors" not in files_of(folder)
    assert len([name for name in files_of(folder) if name.startswith("model-")]) == 2
    (folder / "model-00002-of-00002.safetensors").unlink()  # a download that was interrupted
    assert (hub.fetch("org/sharded") / "model-00002-of-00002.safetensors").read_bytes() == b"2"


def test_revisions_files_and_adapters(server):
    assert hub.fetch("org/model@v1").name == COMMIT
    assert hub.fetch("org/model@" + COMMIT).name == COMMIT
    assert hub.fetch("org/quantized/a-q8_0.gguf").read_bytes() == b"GGUF 8"
    assert hub.fetch("org/quantized/sub/b.gguf").read_bytes() == b"GGUF 4"
    assert files_of(hub.fetch("org/run")) == ["model.safetensors", "run.json", "tokenizer.json"]
    server.paths.clear()
    assert hub.fetch("org/run") and not server.paths
    assert files_of(hub.fetch("org/adapter")) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    "name, said",
    [
        ("org/nothing", "org/nothing does not exist here, and the Hugging Face hub has no such model"),
        ("org/model@v9", "org/model has no revision v9; name another branch"),
        ("org/model/x.gguf", "org/model has no file x.gguf; it has no GGUF file"),
        ("org/quantized", "org/quantized has GGUF files, not one model; name one of its files: a-q8_0.gguf, sub/b.g"),
        ("org/quantized/c.gguf", "org/quantized has no file c.gguf; name one of its files: a-q8_0.gguf"),
        ("org/pickled", "org/pickled has only pickled weights, .*/spaces/safetensors/convert"),
        ("org/text", "org/text has no config.json with safetensors; name another model"),
        ("or--g/model", "or--g/model does not exist here"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(server, name, said):
    with pytest.raises(UserError, match=said):
        hub.fetch(name)


def test_a_license_that_is_not_accepted(server):
    server.gated = "model"
    with pytest.raises(UserError, match="org/model needs a license to be accepted at .*; accept it, run hf auth login"):
        hub.fetch("org/model")


# Without a network


def unreachable(monkeypatch):
    """Make huggingface_hub use a port on which no server listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_port
    server.server_close()
    point(monkeypatch, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("offline", [True, False])
def test_the_cache_is_enough_without_a_network(server, monkeypatch, offline):
    from huggingface_hub import constants

    folders = [hub.fetch(name) for name in ("org/model", "org/bare", "org/quantized/a-q8_0.gguf")]
    unreachable(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert [hub.fetch(name) for name in ("org/model", "org/bare", "org/quantized/a-q8_0.gguf")] == folders
    said = (
        "HF_HUB_OFFLINE forbids a download; unset HF_HUB_OFFLINE, or"
        if offline
        else "cannot be downloaded .* check the network, or"
    )
    for name in ("org/sharded", "org/quantized/sub/b.gguf", "org/model@v1"):
        with pytest.raises(UserError, match=f"^{name} does not exist here and .*{said} download its files elsewhere"):
            hub.fetch(name)


def test_an_incomplete_cache_is_not_used_without_a_network(server, monkeypatch):
    folder = hub.fetch("org/sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    unreachable(monkeypatch)
    with pytest.raises(UserError, match="org/sharded does not exist here and cannot be downloaded"):
        hub.fetch("org/sharded")


def test_a_cache_that_another_program_has_filled(server, tmp_path, monkeypatch):
    """A cache that was copied from elsewhere has huggingface_hub's layout."""
    unreachable(monkeypatch)
    folder = tmp_path / "cache" / "models--other--model"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_bytes(b"{}")
    assert hub.fetch("other/model") == snapshot


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r'org/model, which does not exist here, as a name on .* run pip install "slm_np\[hub\]"'
    ):
        hub.fetch("org/model")
