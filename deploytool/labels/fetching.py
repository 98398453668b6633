"""Documents of one server, fetched politely: bounded in size, time and tries, and kept in a cache on disk."""

import contextlib
import email.utils
import hashlib
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploytool import __version__
from deploytool.atomic import write_text
from deploytool.errors import LabelError

PASSING = (429, 500, 502, 503, 504)  # answers that another try may better
ADVICE = "try again later (what was fetched is kept), or read a dump with --conceptnet FILE"


@dataclass(frozen=True)
class Fetcher:
    """Gets JSON objects below one address.

    Attributes:
        base: address such as https://api.conceptnet.io; what it redirects to must be on the same host.
        cache: folder for answers; None: the user's cache.
        tries: of one document, at most.
        timeout_s: for one try, from the request to the last byte.
        limit_s: for all tries of one document with the pauses between them.
        pause_s: before the second try; twice as long before each further one, less up to half of it at random, so
            that many clients do not return together. A server's Retry-After counts instead where it is longer.
        max_bytes: of one answer.

    Raises:
        LabelError: `base` is no http or https address.
    """

    base: str
    cache: Path | None = None
    tries: int = 5
    timeout_s: float = 30.0
    limit_s: float = 120.0
    pause_s: float = 1.0
    max_bytes: int = 16 << 20
    _opener: urllib.request.OpenerDirector = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.base)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good or not self.base.isascii() or not self.base.isprintable() or set(self.base) & set(" ?#@"):
            raise LabelError(
                f"API address (={self.base[:100]!r}) must be an http or https address such as https://api.conceptnet.io"
            )
        object.__setattr__(self, "base", self.base.rstrip("/"))
        object.__setattr__(self, "_opener", urllib.request.build_opener(_SameHost(self)))

    def get(self, target: str) -> dict[str, Any]:
        """Return the JSON object at a path with its query, such as "/c/en/dog?offset=0&limit=1000".

        An answer in the cache is used, whatever its age; a damaged one is fetched again.

        Raises:
            LabelError: there is none to be had; says what the server answered and what to do.
        """
        url = self.base + target
        kept = self._place(url)
        with contextlib.suppress(OSError, LabelError):
            return _json_object(kept.read_bytes(), str(kept))
        document = self._fetch(url)
        with contextlib.suppress(OSError):  # a full disk costs the cache, not the answer
            write_text(kept, json.dumps(document))
        return document

    def allows(self, url: str) -> bool:
        """Whether an address is on the host of `base`, on its port, and as safe."""
        try:
            ours, theirs = urllib.parse.urlsplit(self.base), urllib.parse.urlsplit(url)
            if theirs.scheme not in ("http", "https") or ours.hostname != theirs.hostname:
                return False
            upgraded = (ours.scheme, theirs.scheme, ours.port, theirs.port) == ("http", "https", None, None)
            return upgraded or (ours.scheme, _port(ours)) == (theirs.scheme, _port(theirs))
        except ValueError:
            return False

    def _place(self, url: str) -> Path:
        folder = self.cache
        if folder is None:
            home = os.environ.get("XDG_CACHE_HOME") or ""
            root = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
            folder = root / "deploytool" / "conceptnet"
        return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"

    def _fetch(self, url: str) -> dict[str, Any]:
        deadline = time.monotonic() + self.limit_s
        problem = ""
        for attempt in range(self.tries):
            asked = 0.0
            try:
                return _json_object(self._download(url, min(deadline, time.monotonic() + self.timeout_s)), url)
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"answered {error.code} {_line(error.reason)}".rstrip()
                    if error.code not in PASSING:
                        raise LabelError(f"{url} {problem}; check the address of the API") from None
                    asked = _retry_after(error.headers.get("Retry-After"))
            except TimeoutError:
                problem = f"did not answer within {self.timeout_s:g} s"
            except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
                problem = f"cannot be reached ({_line(getattr(error, 'reason', None) or error)})"
                if isinstance(getattr(error, "reason", None), TimeoutError):
                    problem = f"did not answer within {self.timeout_s:g} s"
            except _RefusedError as error:
                raise LabelError(f"{error}; check the address of the API") from None
            except LabelError as error:  # garbage: a proxy or an overloaded server; another try may be better
                problem = str(error).removeprefix(url).strip()
            pause = max(asked, self.pause_s * 2**attempt * random.uniform(0.5, 1))
            if attempt + 1 == self.tries:
                break
            if time.monotonic() + pause > deadline:
                wants = f" and asks to wait {asked:g} s" if asked == pause else ""
                raise LabelError(f"{url} {problem}{wants}; {self.limit_s:g} s are used up; {ADVICE}") from None
            time.sleep(pause)
        raise LabelError(f"{url} {problem}, {self.tries} times; {ADVICE}")

    def _download(self, url: str, deadline: float) -> bytes:
        """Read one answer whole; a server that trickles is given up at the deadline, too."""
        request = urllib.request.Request(  # noqa: S310 - the address was checked
            url, headers={"Accept": "application/json", "User-Agent": f"deploytool/{__version__}"}
        )
        chunks = []
        size = 0
        with self._opener.open(request, timeout=max(0.01, deadline - time.monotonic())) as answer:
            length = answer.headers.get("Content-Length")
            while chunk := answer.read1(1 << 16):
                chunks.append(chunk)
                size += len(chunk)
                if size > self.max_bytes:
                    raise _RefusedError(f"{url} answers with more than {self.max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError
        if length is not None and length.isascii() and length.isdecimal() and size < int(length[:18]):
            raise LabelError(f"{url} answers with {size} of {length[:18]} bytes")
        return b"".join(chunks)


class _RefusedError(LabelError):
    """An answer that another try will not better."""


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the host alone: no other server, no file."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not self._fetcher.allows(newurl):
            raise _RefusedError(f"{req.full_url} redirects to {newurl[:100]!r}, which is another host")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _json_object(data: bytes, url: str) -> dict[str, Any]:
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise LabelError(f"{url} answers with what is no JSON: {data[:40]!r}") from None
    if not isinstance(document, dict):
        raise LabelError(f"{url} answers with JSON that is no object")
    return document


def _port(parts: urllib.parse.SplitResult) -> int:
    return parts.port or {"http": 80, "https": 443}[parts.scheme]


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number, or a date; 0 where it says neither."""
    if value is None:
        return 0.0
    if value.strip().isdecimal() and value.isascii():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _line(text: Any) -> str:
    return " ".join(str(text).split())[:100]
