"""The REST API's client against a local server that speaks its JSON, well and badly."""

import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from deploytool.errors import DeploytoolError, LabelError
from deploytool.labels import conceptnet_api, fetching
from deploytool.labels.conceptnet_api import labels_from_api, synonyms_from_api
from deploytool.labels.fetching import Fetcher
from deploytool.labels.subjects import Subjects

Answer = tuple[int, dict[str, str], bytes]


def edge(relation: str, start: str, end: str, weight: Any = 1.0) -> dict[str, Any]:
    """As api.conceptnet.io writes them."""
    node = lambda uri: {"@id": uri, "@type": "Node", "label": uri.split("/")[3], "language": uri.split("/")[2]}  # noqa: E731
    return {
        "@id": f"/a/[/r/{relation}/,{start}/,{end}/]", "@type": "Edge", "dataset": "/d/conceptnet/4/en",
        "license": "cc:by/4.0", "rel": {"@id": f"/r/{relation}", "label": relation}, "start": node(start),
        "end": node(end), "surfaceText": "[[x]]", "sources": [], "weight": weight,
    }  # fmt: skip


def page(path: str, edges: list[Any], following: str | None = None) -> dict[str, Any]:
    view = {"@id": path, "@type": "PartialCollectionView", "paginatedProperty": "edges"}
    return {"@id": path, "edges": edges, "view": view | ({"nextPage": following} if following else {})}


def answer(document: Any, status: int = 200, **headers: str) -> Answer:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return status, {key.replace("_", "-"): value for key, value in headers.items()}, body


class Server:
    """Answers with what `respond` returns for a path; keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.respond: Callable[[str], Answer] = lambda path: answer(page(path, []))
        self.slow_s = 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, headers, body = outer.respond(self.path)
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                try:
                    if outer.slow_s:
                        for byte in body:
                            self.wfile.write(bytes([byte]))
                            self.wfile.flush()
                            time.sleep(outer.slow_s)
                    else:
                        self.wfile.write(body)
                except OSError:
                    pass  # the client hung up, as it should

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch) -> None:
    """A proxy of the person who runs the tests does not know this machine's local servers."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def fetcher(server: Server, tmp_path: Path) -> Fetcher:
    return Fetcher(server.address, tmp_path / "cache", tries=3, timeout_s=0.5, limit_s=3, pause_s=0.01)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def refusal(fetcher: Fetcher, **options: Any) -> str:
    with pytest.raises(LabelError) as caught:
        labels_from_api(fetcher, Subjects(["dog"]), **options)
    return one_line(caught.value)


def pet(path: str) -> Answer:
    return answer(page(path, [edge("IsA", "/c/en/dog", "/c/en/pet", 2.0)]))


def test_pages_are_followed_to_their_end_and_sorted(server: Server, fetcher: Fetcher) -> None:
    edges = [edge("RelatedTo", "/c/en/dog/n", f"/c/en/w{i}", 1 + i / 10) for i in range(25)]

    def respond(path: str) -> Answer:
        assert path.startswith("/c/en/dog?")
        query = urllib.parse.parse_qs(path.partition("?")[2])
        offset, limit = int(query["offset"][0]), min(10, int(query["limit"][0]))  # a server may give less than asked
        following = f"/c/en/dog?offset={offset + limit}&limit={limit}" if offset + limit < len(edges) else None
        return answer(page(path, edges[offset : offset + limit], following))

    server.respond = respond
    labels, counts = labels_from_api(fetcher, Subjects(["dog"]), 20)
    assert [label.label for label in labels["dog"]] == [f"w{i}" for i in range(24, 4, -1)]
    assert (counts.pages, counts.lines, counts.skipped, counts.notes()) == (3, 25, 0, [])
    assert server.asked[0] == "/c/en/dog?offset=0&limit=1000" and len(server.asked) == 3
    top = labels["dog"][0]
    assert (top.weight, top.relation, top.source, top.licence) == (3.4, "RelatedTo", "/d/conceptnet/4/en", "cc:by/4.0")


def test_the_second_run_asks_nobody(server: Server, fetcher: Fetcher) -> None:
    server.respond = pet
    first, _ = labels_from_api(fetcher, Subjects(["dog"]))
    second, _ = labels_from_api(fetcher, Subjects(["dog"]))
    assert dict(first.items()) == dict(second.items()) and len(server.asked) == 1


def test_a_damaged_cache_is_fetched_again(server: Server, fetcher: Fetcher, tmp_path: Path) -> None:
    server.respond = pet
    labels_from_api(fetcher, Subjects(["dog"]))
    (kept,) = (tmp_path / "cache").iterdir()
    for damage in (b"", b'{"edges": [', b"\xff", b"[]"):
        kept.write_bytes(damage)
        labels, _ = labels_from_api(fetcher, Subjects(["dog"]))
        assert labels["dog"][0].label == "pet"
    assert len(server.asked) == 5


def test_a_cache_that_cannot_be_written_costs_nothing_else(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server.respond = pet
    labels, _ = labels_from_api(Fetcher(server.address, tmp_path / "file" / "cache"), Subjects(["dog"]))
    assert labels["dog"][0].label == "pet"


def test_the_users_cache_is_the_default(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    server.respond = pet
    labels_from_api(Fetcher(server.address), Subjects(["dog"]))
    assert len(list((tmp_path / "xdg" / "deploytool" / "conceptnet").glob("*.json"))) == 1


def test_every_name_is_asked_for_in_its_url_form(server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(
        page(path, [edge("HasA", "/c/en/pine_tree", "/c/en/cone"), edge("IsA", "/c/en/sapin_é", "/c/en/conifer")])
    )
    labels, counts = labels_from_api(fetcher, Subjects(["Pine Tree"], {"Pine Tree": ["sapin é"]}))
    assert [x.partition("?")[0] for x in server.asked] == ["/c/en/pine_tree", "/c/en/sapin_%C3%A9"]
    assert [x.label for x in labels["Pine Tree"]] == ["conifer", "cone"] and counts.pages == 2


def test_synonyms_from_the_api(server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(page(path, [edge("Synonym", "/c/en/automobile/n", "/c/en/car/n"),
                                                     edge("Synonym", "/c/fr/auto", "/c/en/automobile")]))  # fmt: skip
    assert synonyms_from_api(fetcher, Subjects(["automobile"])) == {"automobile": ["car"]}


@pytest.mark.parametrize("bad", [answer(b"oops", 500), answer(b"<html>", 200), answer(b"", 503), answer([1]),
                                 answer(b"{", 200, Content_Length="100"), answer(b"slow down", 429, Retry_After="0"),
                                 answer(b"", 429, Retry_After="soon")])  # fmt: skip
def test_what_passes_is_tried_again(bad: Answer, server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: bad if len(server.asked) < 3 else pet(path)
    labels, _ = labels_from_api(fetcher, Subjects(["dog"]))
    assert labels["dog"][0].label == "pet" and len(server.asked) == 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (answer(b"oops", 500), ["answered 500", "3 times", "--conceptnet FILE"]),
        (answer(b"<html>\n\x1b[2J", 200), ["no JSON", "<html>", "3 times"]),
        (answer([1]), ["no object", "3 times"]),
        (answer(b"[" * 100_000), ["no JSON"]),
        (answer(b'{"a": "\xff"}'), ["no JSON"]),
    ],
)
def test_what_stays_bad_is_one_line(bad: Answer, words: list[str], server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: bad
    message = refusal(fetcher)
    assert all(word in message for word in words) and len(server.asked) == 3 and message.isprintable()


@pytest.mark.parametrize("status", [400, 403, 404])
def test_what_another_try_does_not_better_is_asked_once(status: int, server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer({"error": "x"}, status)
    assert f"answered {status}" in refusal(fetcher) and len(server.asked) == 1


def test_a_server_may_ask_to_wait(server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(b"", 429, Retry_After="1") if len(server.asked) == 1 else pet(path)
    started = time.monotonic()
    labels_from_api(fetcher, Subjects(["dog"]))
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("wait", ["3600", "a date", "9" * 5000], ids=["seconds", "date", "endless"])
def test_a_server_that_asks_for_too_long_a_wait_is_told_to_the_person(
    wait: str, server: Server, fetcher: Fetcher
) -> None:
    wait = formatdate(time.time() + 3600, usegmt=True) if wait == "a date" else wait
    server.respond = lambda path: answer(b"", 429, Retry_After=wait)
    message = refusal(fetcher)
    assert "429" in message and "asks to wait" in message and len(server.asked) == 1


def test_what_was_fetched_before_a_failure_is_kept(server: Server, fetcher: Fetcher) -> None:
    following = "/c/en/dog?offset=1000&limit=1000"
    good = [False]

    def respond(path: str) -> Answer:
        if "offset=0" in path:
            return answer(page(path, [edge("IsA", "/c/en/dog", "/c/en/pet")], following))
        return answer(page(path, [edge("IsA", "/c/en/dog", "/c/en/animal")])) if good[0] else answer(b"", 500)

    server.respond = respond
    refusal(fetcher)
    good[0] = True
    labels, counts = labels_from_api(fetcher, Subjects(["dog"]))
    assert {label.label for label in labels["dog"]} == {"pet", "animal"} and counts.pages == 2
    assert sum("offset=0" in path for path in server.asked) == 1


def test_a_server_that_trickles_is_given_up(server: Server, tmp_path: Path) -> None:
    server.respond, server.slow_s = pet, 0.05
    fetcher = Fetcher(server.address, tmp_path, tries=2, timeout_s=0.3, limit_s=2, pause_s=0.01)
    started = time.monotonic()
    assert "did not answer within 0.3 s" in refusal(fetcher)
    assert time.monotonic() - started < 30 and len(server.asked) == 2  # not for ever


def test_a_server_that_is_silent_is_given_up(server: Server, tmp_path: Path) -> None:
    def respond(path: str) -> Answer:
        time.sleep(0.5)
        return pet(path)

    server.respond = respond
    fetcher = Fetcher(server.address, tmp_path, tries=2, timeout_s=0.1, limit_s=2, pause_s=0.01)
    assert "did not answer within 0.1 s" in refusal(fetcher)


def test_all_tries_together_have_a_limit(server: Server, tmp_path: Path) -> None:
    server.respond = lambda path: answer(b"", 500)
    fetcher = Fetcher(server.address, tmp_path, tries=1000, timeout_s=0.2, limit_s=0.4, pause_s=0.05)
    started = time.monotonic()
    assert "0.4 s are used up" in refusal(fetcher)
    assert time.monotonic() - started < 30


def test_nobody_there(tmp_path: Path) -> None:
    made = Server()
    made.close()
    fetcher = Fetcher(made.address, tmp_path, tries=2, pause_s=0.01)
    message = refusal(fetcher)
    assert "cannot be reached" in message and "2 times" in message


@pytest.mark.parametrize("headers", [{"Location": "http://["}, {"Location": "/a b\x01"}, {"Location": ""}, {}])
def test_a_malformed_redirect(headers: dict[str, str], server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(b"", 302, **headers)
    refusal(fetcher)


def test_a_length_that_is_no_number_of_bytes(server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer({}, 200, Content_Length="9" * 5000)
    assert "999 bytes" in refusal(fetcher)


def test_a_host_that_no_name_server_takes(tmp_path: Path) -> None:
    fetcher = Fetcher("http://" + "a" * 70 + ".example", tmp_path, tries=1)
    assert "cannot be reached" in refusal(fetcher)


def test_an_answer_without_end_is_cut(server: Server, tmp_path: Path) -> None:
    server.respond = lambda path: answer(b" " * 100_000)
    message = refusal(Fetcher(server.address, tmp_path, max_bytes=10_000, pause_s=0.01))
    assert "more than 10000 bytes" in message and len(server.asked) == 1


def test_pages_without_end_are_bounded_and_told(server: Server, fetcher: Fetcher, monkeypatch) -> None:
    monkeypatch.setattr(conceptnet_api, "MAX_PAGES", 4)

    def respond(path: str) -> Answer:
        offset = int(urllib.parse.parse_qs(path.partition("?")[2])["offset"][0])
        edges = [edge("IsA", "/c/en/dog", f"/c/en/w{offset}")]
        return answer(page(path, edges, f"/c/en/dog?offset={offset + 1}&limit=1"))

    server.respond = respond
    _, counts = labels_from_api(fetcher, Subjects(["dog"]))
    assert len(server.asked) == counts.pages == 4 and counts.cut == ("dog",) and "dog" in counts.notes()[0]


def test_pages_in_a_circle_end(server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(page(path, [edge("IsA", "/c/en/dog", "/c/en/pet")], path))
    _, counts = labels_from_api(fetcher, Subjects(["dog"]))
    assert counts.pages == 1


@pytest.mark.parametrize(
    "following",
    ["http://example.com/c/en/dog?offset=1", "/c/en/cat?offset=20", "//example.com/c/en/dog?x", "file:///etc/passwd",
     "/c/en/dog?a b", 7, {"a": 1}],
)  # fmt: skip
def test_a_next_page_elsewhere_is_not_followed(following: Any, server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(page(path, [edge("IsA", "/c/en/dog", "/c/en/pet")], following))
    assert "next page" in refusal(fetcher) and len(server.asked) == 1


@pytest.mark.parametrize(
    "elsewhere", ["http://localhost:{port}/x", "http://127.0.0.1:1/x", "https://127.0.0.1:{port}/x",
                  "http://example.com/", "ftp://127.0.0.1/x"],
)  # fmt: skip
def test_a_redirect_elsewhere_is_refused(elsewhere: str, server: Server, fetcher: Fetcher) -> None:
    target = elsewhere.format(port=server.address.rpartition(":")[2])
    server.respond = lambda path: answer(b"", 302, Location=target)
    assert "another host" in refusal(fetcher) and len(server.asked) == 1


def test_a_redirect_to_a_file_is_refused(server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(b"", 302, Location="file:///etc/passwd")
    message = refusal(fetcher)
    assert "root:" not in message and len(server.asked) == 1


def test_a_redirect_within_the_host_is_followed_and_one_in_a_circle_is_not(server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: pet(path) if path.startswith("/new") else answer(b"", 301, Location="/new")
    labels, _ = labels_from_api(fetcher, Subjects(["dog"]))
    assert labels["dog"][0].label == "pet"
    server.respond = lambda path: answer(b"", 302, Location=path)
    with pytest.raises(LabelError) as caught:
        labels_from_api(fetcher, Subjects(["cat"]))
    one_line(caught.value)


def test_an_upgrade_to_https_is_the_same_host() -> None:
    fetcher = Fetcher("http://api.conceptnet.io")
    assert fetcher.allows("https://api.conceptnet.io/c/en/dog") and fetcher.allows("http://api.conceptnet.io:80/x")
    assert not fetcher.allows("http://conceptnet.io/") and not fetcher.allows("https://api.conceptnet.io:444/")
    assert not Fetcher("https://api.conceptnet.io").allows("http://api.conceptnet.io/")
    assert not fetcher.allows("http://[") and not fetcher.allows("http://api.conceptnet.io:99999/")


@pytest.mark.parametrize(
    "address", ["", "api.conceptnet.io", "file:///etc", "ftp://x", "http://", "http://a b", "http://x?y", "http://[",
                "http://x:99999", "http://u:p@x", "http://é"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(LabelError, match="https://api.conceptnet.io"):
        Fetcher(address)


BAD_EDGES = [
    None, 7, [], {}, {"rel": "/r/IsA"}, {**edge("IsA", "/c/en/dog", "/c/en/x"), "weight": "1"},
    {**edge("IsA", "/c/en/dog", "/c/en/x"), "weight": None}, {**edge("IsA", "/c/en/dog", "/c/en/x"), "end": {"@id": 3}},
    {**edge("IsA", "/c/en/dog", "/c/en/x"), "end": {"@id": "/c/en/"}}, edge("IsA", "/c/en/dog", "/c/en/x", 1e999),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_EDGES, ids=range(len(BAD_EDGES)))
def test_a_malformed_statement_is_counted_or_refused(bad: Any, server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(page(path, [edge("IsA", "/c/en/dog", "/c/en/pet"), bad]))
    labels, counts = labels_from_api(fetcher, Subjects(["dog"]))
    assert [x.label for x in labels["dog"]] == ["pet"] and (counts.lines, counts.skipped) == (2, 1)
    assert "1 of 2 statements" in counts.notes()[0]
    message = refusal(fetcher, strict=True)
    assert "statement 2" in message and "--strict" in message


@pytest.mark.parametrize("document", [{}, {"edges": {}}, {"error": {"status": 500}}])
def test_json_of_another_kind_is_refused(document: Any, server: Server, fetcher: Fetcher) -> None:
    server.respond = lambda path: answer(document)
    assert "no list of edges" in refusal(fetcher)


def test_a_word_that_the_api_does_not_know_has_no_labels(server: Server, fetcher: Fetcher) -> None:
    assert "no labels for dog" in refusal(fetcher)


def test_pauses_grow_and_vary(server: Server, tmp_path: Path, monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", pauses.append)
    server.respond = lambda path: answer(b"", 503)
    with pytest.raises(DeploytoolError):
        Fetcher(server.address, tmp_path, tries=5, pause_s=1.0).get("/x")
    assert len(pauses) == 4
    for power, pause in enumerate(pauses):
        assert 0.5 * 2**power <= pause <= 2**power
