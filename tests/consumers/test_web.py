"""The file in a web page: onnxruntime-web, WebAssembly on one thread, in a headless Chromium."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WEB = Path(__file__).parent / "web"
DIST = WEB / "node_modules" / "onnxruntime-web" / "dist"
DEPLOYED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}
SECONDS = 60
# Nothing may come from another place than the server, and no code may be compiled but WebAssembly.
POLICY = "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what the browser itself would call
)


class Server(ThreadingHTTPServer):
    """Serves documents (path -> suffix and content) on a free port of this machine, and keeps what is posted."""

    def __init__(self, documents: Mapping[str, tuple[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.documents = documents
        self.requests: list[str] = []
        self.results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path not in self.server.documents:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        suffix, content = self.server.documents[self.path]
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES.get(suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.server.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: `requests` is what a failure shows."""


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}) on the PATH; install one: apt-get install chromium")
    return found


@pytest.fixture(scope="session")
def library() -> dict[str, tuple[str, bytes]]:
    """The three files of onnxruntime-web that a page needs beside it."""
    if not DIST.is_dir():
        pytest.skip("onnxruntime-web is not there; fetch it: make web (npm ci --prefix tests/consumers/web)")
    return {f"/ort/{name}": (Path(name).suffix, (DIST / name).read_bytes()) for name in DEPLOYED}


@pytest.fixture(scope="session")
def answer(chromium, library, exported_files, ort_folders) -> dict[str, Any]:
    """What one visit to the page says of every file in both formats, and of one that is cut short."""
    files, calls = {}, {}
    for kind, exported in exported_files.items():
        feeds = [{name: as_json(value) for name, value in case.feed.items()} for case in exported.cases]
        for address, file in {
            f"/{kind}.onnx": exported.file,
            f"/{kind}.all.ort": ort_folders["all"] / f"{kind}.ort",
            f"/{kind}.disable.ort": ort_folders["disable"] / f"{kind}.ort",
        }.items():
            files[address], calls[address] = (file.suffix, file.read_bytes()), feeds
    files["/cut.onnx"], calls["/cut.onnx"] = (".onnx", files["/float.onnx"][1][:-1000]), calls["/float.onnx"]
    page = {"/": (".html", (WEB / "page.html").read_bytes()), "/calls": (".json", json.dumps(calls).encode())}
    return visit(chromium, page | library | files)


def as_json(tensor: np.ndarray) -> dict[str, Any]:
    """A float32 tensor, exactly: every float32 is a JSON number."""
    return {"dims": tensor.shape, "data": tensor.ravel().tolist()}


def visit(chromium: str, documents: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """Open `/` in a browser that has never been used, and return what the page posts."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Server(documents) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [chromium, *FLAGS, f"--user-data-dir={folder}/profile", f"http://127.0.0.1:{server.server_port}/"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"HOME": folder, "TMPDIR": folder},  # it writes there too, whatever the profile
                start_new_session=True,
            )
        try:
            return first_result(server, process, log)
        finally:
            stop(process)
            server.shutdown()


def first_result(server: Server, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(queue.Empty):
            result = server.results.get(timeout=0.2)
            if "error" in result:
                pytest.fail(f"the page failed: {result['error']}")
            return result
    state = f"the page told nothing in {SECONDS} s" if process.poll() is None else f"Chromium exited, {process.poll()}"
    pytest.fail(f"{state}; requests: {server.requests}; log: {log.read_text(errors='replace')[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the browser and the processes that it started, which share its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


@pytest.mark.parametrize("form", ["onnx", "all.ort", "disable.ort"])
def test_onnxruntime_web_answers_as_the_torch_model(answer, exported, form: str) -> None:
    result = answer["files"][f"/{exported.file.stem}.{form}"]
    assert "error" not in result, result["error"]
    for case, logits in zip(exported.cases, result["answers"], strict=True):
        assert logits["type"] == "float32"
        values = np.array(logits["data"], np.float32).reshape(logits["dims"])  # JSON's null, for NaN, becomes NaN
        np.testing.assert_allclose(values, case.expected, rtol=0, atol=1e-3, err_msg=str(case), strict=True)


def test_the_page_ran_the_pinned_library_as_any_server_serves_it(answer) -> None:
    """No cross-origin isolation: a plain static server, without headers of its own, is enough for one thread."""
    pinned = json.loads((WEB / "package.json").read_text())["dependencies"]["onnxruntime-web"]
    assert answer["version"] == pinned, "node_modules is not what package.json names; run make web"
    assert answer["isolated"] is False


def test_an_error_in_the_page_reaches_the_test(answer) -> None:
    """Or else a page that loads nothing could pass for one that agrees."""
    assert set(answer["files"]["/cut.onnx"]) == {"error"}
    assert answer["files"]["/cut.onnx"]["error"]
