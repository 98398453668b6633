"""`deploytool labels`: JSON keys, warnings on stderr, files, and one line for bad input."""

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploytool.cli import cli
from deploytool.labels.files import load_labels

RECIPES = Path(__file__).parents[2] / "recipes" / "labels"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["labels", *map(str, arguments)])


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_one_line_error(result: Result, *words: str) -> None:
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def line(relation: str, start: str, end: str, weight: float = 1.0) -> str:
    about = json.dumps({"dataset": "/d/test", "license": "cc:by/4.0", "weight": weight})
    return "\t".join((f"/a/[{start},{end}]", f"/r/{relation}", f"/c/en/{start}", f"/c/en/{end}", about))


LINES = [
    line("HasA", "car", "tires", 2.0),
    line("IsA", "automobile", "vehicle"),
    line("PartOf", "seat", "car", 3.0),
    line("Synonym", "auto", "automobile"),
    line("HasA", "auto", "roof"),
    line("IsA", "panda", "animal", 4.0),
    line("HasA", "panda", "paws"),
]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    file = tmp_path / "assertions.csv.gz"
    file.write_bytes(gzip.compress("\n".join([*LINES[:5], "broken", *LINES[5:], ""]).encode()))
    return file


def test_a_dump_gives_the_contracts_keys(dump: Path) -> None:
    asked = ["--conceptnet", dump, "--classes", "automobile,panda", "--per-class", 2]
    document = run_json(*asked, "--synonym", "automobile=car")
    assert list(document["classes"]) == ["automobile", "panda"]
    first = document["classes"]["automobile"][0]
    assert (first["label"], first["relation"], first["weight"], first["direction"]) == ("seat", "HasA", 3.0, "reverse")
    assert [label["label"] for label in document["classes"]["panda"]] == ["animal", "paws"]
    assert all({"label", "relation", "weight"} <= set(x) for labels in document["classes"].values() for x in labels)
    assert (document["lines"], document["skipped"], document["truncated"], document["label_count"]) == (8, 1, False, 4)
    assert document["seconds"] > 0


def test_synonyms_of_the_dump_itself(dump: Path) -> None:
    document = run_json("--conceptnet", dump, "--classes", "automobile", "--synonyms")
    assert [label["label"] for label in document["classes"]["automobile"]] == ["vehicle", "roof"]
    assert document["names"] == {"automobile": ["automobile", "auto"]}


def test_warnings_go_to_stderr_and_name_classes_and_lines(dump: Path) -> None:
    result = run("--conceptnet", dump, "--classes", "automobile,panda", "--per-class", 2)
    assert result.exit_code == 0
    assert "warning: fewer than 2 labels for automobile (1); --synonym may find more" in result.stderr
    assert "1 of 8 lines were skipped; the first is line 6: columns (=1)" in result.stderr
    assert "warning:" not in result.stdout and "vehicle" in result.stdout and "2 classes" in result.stdout


def test_the_file_written_is_a_map_to_read_and_to_check(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "labels.yaml"
    document = run_json("--conceptnet", dump, "--classes", "automobile,panda", "-o", out)
    assert document["file"] == str(out) and load_labels(out).to_dict() == document["classes"]
    assert run_json("--map", out, "--classes", "panda,automobile")["classes"]["panda"] == document["classes"]["panda"]
    assert_one_line_error(run("--map", out, "--data", "cifar10"), "for other classes", "lacks airplane", "panda")
    assert "written to" in run("--map", out, "-o", tmp_path / "again.yaml").stdout


def test_a_damaged_dump_writes_nothing_where_it_is_refused(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.yaml"
    asked = ["--conceptnet", dump, "--classes", "automobile", "-o", out]
    assert_one_line_error(run(*asked, "--strict"), "line 6", "--strict")
    assert_one_line_error(run(*asked, "--classes", "automobile,okapi"), "okapi", "--synonym okapi=NAME")
    dump.write_bytes(dump.read_bytes()[:-10])
    assert_one_line_error(run(*asked, "--strict"), "line")
    assert not out.exists()
    result = run(*asked, "--json")
    assert json.loads(result.stdout)["truncated"] is True and "ends early" in result.stderr and out.exists()


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_shipped_map_passes_the_check(name: str) -> None:
    result = run("--map", RECIPES / f"{name}.yaml", "--data", name, "--json")
    assert (result.exit_code, result.stderr) == (0, "") and len(json.loads(result.stdout)["classes"]) == 10


def test_equal_vectors_are_told(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("panda: [animal]\nbear: [animal]\n")
    result = run("--map", tmp_path / "map.yaml")
    assert result.exit_code == 0 and "panda, bear have the same labels" in result.stderr


def test_wordnet_from_a_folder(tmp_path: Path) -> None:
    head = "  1 licence\n"
    pet = f"{len(head):08d} 05 n 01 pet 0 000 | kept at home  \n"
    dog = f"{len(head + pet):08d} 05 n 01 dog 0 001 @ {len(head):08d} n 0000 | barks  \n"
    (tmp_path / "data.noun").write_text(head + pet + dog)
    (tmp_path / "index.noun").write_text(head + f"dog n 1 1 @ 1 1 {len(head + pet):08d}  \n")
    document = run_json("--wordnet", tmp_path, "--classes", "dog", "--sense", "dog=1")
    assert [(x["label"], x["relation"]) for x in document["classes"]["dog"]] == [("pet", "IsA")]
    assert document["senses"] == {"dog": ["dog"]}
    assert_one_line_error(run("--wordnet", tmp_path, "--classes", "cat"), "cat", "--synonym")


@pytest.fixture
def address(monkeypatch) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            edge = {"rel": {"@id": "/r/IsA"}, "start": {"@id": "/c/en/dog"}, "end": {"@id": "/c/en/pet"}, "weight": 2}
            body = json.dumps({"edges": [edge]}).encode()
            self.send_response(200 if self.path.startswith("/c/en/dog") else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_api_at_an_address(address: str, tmp_path: Path) -> None:
    document = run_json("--api", address, "--classes", "dog", "--cache", tmp_path / "cache")
    assert [(x["label"], x["weight"]) for x in document["classes"]["dog"]] == [("pet", 2.0)]
    assert (document["pages"], document["lines"], document["skipped"]) == (1, 1, 0)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert_one_line_error(run("--api", address, "--classes", "cat"), "404")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--map", "absent.yaml"], ["absent.yaml", "No such file"]),
        (["--conceptnet", "absent.csv", "--classes", "dog"], ["absent.csv", "No such file"]),
        (["--conceptnet", "absent.csv"], ["--classes panda,bus"]),
        (["--conceptnet", "absent.csv", "--data", "cifar"], ["cifar", "did you mean cifar10"]),
        (["--conceptnet", "absent.csv", "--classes", "dog,dog"], ["dog", "twice"]),
        (["--conceptnet", "absent.csv", "--classes", "dog", "--synonym", "dog"], ["class=name"]),
        (["--conceptnet", "absent.csv", "--classes", "dog", "--language", "english!"], ["english!"]),
        (["--wordnet", "absent", "--classes", "dog"], ["absent", "wordnet-base"]),
        (["--wordnet", "absent", "--classes", "dog", "--sense", "dog=first"], ["dog=first"]),
        (["--api", "file:///etc", "--classes", "dog"], ["file:///etc", "http"]),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], words: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run(*arguments, "-o", "out.yaml"), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--classes", "dog"],
        ["--map", "a", "--wordnet", "b"],
        ["--map", "a", "--strict"],
        ["--wordnet", "a", "--strict"],
        ["--conceptnet", "a", "--sense", "dog=1"],
        ["--conceptnet", "a", "--cache", "b"],
        ["--conceptnet", "a", "--classes", "a", "--data", "b"],
        ["--conceptnet", "a", "--classes", "a", "--per-class", "0"],
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
