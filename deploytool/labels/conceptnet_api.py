"""Labels from ConceptNet's REST API, page by page.

`GET /c/en/dog?offset=0&limit=1000` answers with statements that have the node at either end, the heaviest first:

    {"edges": [{"rel": {"@id": "/r/IsA"}, "start": {"@id": "/c/en/dog"}, "end": {"@id": "/c/en/animal"},
                "weight": 4.0, "dataset": "/d/wordnet/3.1", "license": "cc:by-sa/4.0", "surfaceText": ...}, ...],
     "view": {"nextPage": "/c/en/dog?offset=1000&limit=1000", ...}}

Its public address is https://api.conceptnet.io. Source: https://github.com/commonsense/conceptnet5/wiki/API.
"""

import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

from deploytool.errors import LabelError
from deploytool.labels.edges import BadEdgeError, Edges, Take, add_synonyms, check_language, synonyms_of
from deploytool.labels.fetching import Fetcher
from deploytool.labels.gathering import Gathering
from deploytool.labels.label_map import LabelMap
from deploytool.labels.subjects import Subjects
from deploytool.progress import progress_bar

PAGE = 1000  # statements; the API gives no more at once
MAX_PAGES = 20  # of one word: its 20,000 heaviest statements


@dataclass(frozen=True)
class ApiCounts:
    """How much the API gave.

    Attributes:
        pages: answers read, those from the cache too.
        lines: statements in them.
        skipped: statements that are none of ConceptNet's form.
        seconds: it took.
        cut: words with more pages than are read.
    """

    pages: int
    lines: int
    skipped: int
    seconds: float
    cut: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Lines for a person: what was skipped or left."""
        notes = [f"{self.skipped} of {self.lines} statements were skipped, as they are malformed"] * bool(self.skipped)
        if self.cut:
            notes.append(f"only the first {MAX_PAGES} pages were read for {', '.join(self.cut)}")
        return notes


def labels_from_api(
    fetcher: Fetcher, subjects: Subjects, per_class: int = 20, language: str = "en", *, strict: bool = False
) -> tuple[LabelMap, ApiCounts]:
    """Ask the API for the labels of classes, under each of their names.

    Args:
        fetcher: of the API's address.
        subjects: the classes with their synonyms.
        per_class: labels of each class, at most.
        language: of both words of a statement.
        strict: refuse malformed statements, which are otherwise skipped and counted.

    Raises:
        LabelError: the API gives no usable answer, or no label for a class. Pages that came before are in the cache, so
            that another run goes on from there.
        InputError: the language is no code.
    """
    client = _Client(fetcher, language, strict)
    edges = Edges(Gathering(subjects, per_class), language)
    names = list(subjects.by_name())
    with progress_bar("asking ConceptNet", len(names)) as bar:
        for name in names:
            client.read(name, edges.take)
            bar.advance(name)
    return edges.gathering.finish(fetcher.base), client.counts()


def synonyms_from_api(
    fetcher: Fetcher, subjects: Subjects, language: str = "en", *, strict: bool = False
) -> dict[str, list[str]]:
    """Ask the API for other names of the classes: the /r/Synonym statements of their pages.

    Raises:
        LabelError, InputError: see `labels_from_api`.
    """
    found: dict[str, list[str]] = {name: [] for name in subjects.classes}

    def take(relation: str, start: str, end: str, about: dict[str, Any]) -> None:
        add_synonyms(found, synonyms_of(relation, start, end, subjects, language))

    client = _Client(fetcher, language, strict)
    for name in subjects.classes:
        client.read(subjects.names[name][0], take)
    return found


class _Client:
    """Reads the pages of words and counts what is in them."""

    def __init__(self, fetcher: Fetcher, language: str, strict: bool) -> None:
        check_language(language)
        self.fetcher = fetcher
        self.language = language
        self.strict = strict
        self.started = time.perf_counter()
        self.pages = self.lines = self.skipped = 0
        self.cut: list[str] = []

    def read(self, name: str, take: Take) -> None:
        """Call `take` with each statement about a name."""
        word = urllib.parse.quote(name.replace(" ", "_"), safe="")
        target: str | None = f"/c/{self.language}/{word}?offset=0&limit={PAGE}"
        seen: set[str] = set()
        while target is not None and target not in seen:
            if len(seen) == MAX_PAGES:
                self.cut.append(name)
                return
            seen.add(target)
            page = self.fetcher.get(target)
            self.pages += 1
            edges = page.get("edges")
            if not isinstance(edges, list):
                raise LabelError(f"{self.fetcher.base}{target} has no list of edges; is this the address of the API?")
            for number, edge in enumerate(edges, 1):
                self.lines += 1
                try:
                    take(_id(edge, "rel"), _id(edge, "start"), _id(edge, "end"), edge)
                except BadEdgeError as error:
                    if self.strict:
                        raise LabelError(
                            f"{self.fetcher.base}{target}, statement {number}: {error}; leave out --strict to skip it"
                        ) from None
                    self.skipped += 1
            target = self._next(page, target)

    def counts(self) -> ApiCounts:
        """What was read so far."""
        return ApiCounts(
            self.pages, self.lines, self.skipped, time.perf_counter() - self.started, tuple(dict.fromkeys(self.cut))
        )

    def _next(self, page: dict[str, Any], target: str) -> str | None:
        """Path and query of the page after this one, which must be about the same word."""
        view = page.get("view")
        following = view.get("nextPage") if isinstance(view, dict) else None
        if following is None:
            return None
        path, _, query = str(following)[:2000].removeprefix(self.fetcher.base).partition("?")
        ours = target.partition("?")[0]
        if urllib.parse.unquote(path) != urllib.parse.unquote(ours) or not query.isascii() or set(query) & set(" #"):
            raise LabelError(
                f"{self.fetcher.base}{target} names {str(following)[:100]!r} as its next page; not followed"
            )
        return f"{ours}?{query}"


def _id(edge: Any, end: str) -> str:
    """The URI of an edge's relation, start or end."""
    part = edge.get(end) if isinstance(edge, dict) else None
    uri = part.get("@id") if isinstance(part, dict) else None
    if not isinstance(uri, str):
        raise BadEdgeError(f"it has no {end} with an @id")
    return uri
