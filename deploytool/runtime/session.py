"""Running model.onnx: numpy in, numpy out, at a plain model's speed for every setting."""

import contextlib
import itertools
import os
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deploytool.errors import ArtefactError, InputError
from deploytool.models.setting import as_single
from deploytool.runtime.artefact import Artefact, read_artefact
from deploytool.runtime.cache import NetworkCache
from deploytool.runtime.calibration import Inference, calibrated_threads
from deploytool.runtime.graph import Graph, select_outputs
from deploytool.runtime.layout import Layout, learn_layout
from deploytool.runtime.library import CPL, SLACK, Doubt, LibraryNote
from deploytool.runtime.network import FedNetwork, Network, OwnSession, fed_network, share
from deploytool.runtime.partial import (
    check_file_lambda,
    check_file_width,
    check_outputs,
    check_precision,
    check_threshold,
    evaluate,
    specialized_graph,
)
from deploytool.runtime.reasoning import Reasoning, Verdict, check_reasoning_threshold
from deploytool.runtime.saliency import SALIENCY
from deploytool.runtime.threads import available_threads, check_threads

Array = np.ndarray[Any, Any]
Key = tuple[float | None, float]  # lambda as float32, width

SHARED_FROM_BYTES = 1 << 22  # below this, binding the weights at each run costs more than copying them once
MAX_WAITING = 8
MAX_CACHE_MB = 1e9
RETRY_S = 60.0
NICENESS = 10
SIGMOID_SLACK = 1e-6  # onnxruntime 1.31's sigmoid of large numbers is 1.0000001


class SpecializationWarning(UserWarning):
    """A setting could not be specialised; the generic graph goes on answering for it."""


@dataclass(frozen=True)
class Counters:
    """What a session has done so far.

    Attributes:
        generic, specialized: batches answered by the generic graph, and by networks of their setting.
        built, failed, evicted: networks made, that could not be made, and that made room for others.
        cached, cached_mb: networks kept now, and their memory (10^6 bytes), what they share counted once.
        waiting: settings still to be specialised in the background.
    """

    generic: int
    specialized: int
    built: int
    failed: int
    evicted: int
    cached: int
    cached_mb: float
    waiting: int


class Session:
    """An exported model, ready to answer.

        session = Session("model.onnx")
        logits = session(image, lam=0.3)

        session = Session("model.onnx", outputs=("logits", "reasoning"))     of a model with reasoning labels
        [verdict] = session.judge(image, lam=0.3)
        verdict.words                                   "classified panda, rejected: says tires, seats; lacks paws"

        session = Session("model.onnx", outputs=("logits", "saliency"))      of a file with an explainer
        maps = session.run(image, lam=0.3)["saliency"]                       (N, 1, H, W), values in [0, 1]

        session = Session("model.onnx", outputs=("logits", "cpl"))           of a file with libraries
        [doubt] = session.doubt(image, lam=0.3)
        doubt.words                                     "doubtful: layers agree at 0.412, below 0.703"

    A lambda or width not seen before is answered by the graph as it stands in the file, about half as fast, while the
    graph is specialised to it in the background; from then on the specialised network answers, as fast as a plain
    one. Answers of the two differ by rounding (INT8 networks': by INT8's). May be called from several threads at once.

    Args:
        model: path of a file that `deploytool export` or `specialize` wrote, or one already read.
        threads: threads of one inference; where None, the number that is measured to be fastest, among those that
            affinity and cgroup quota allow (`deploytool.runtime.calibration`).
        cache_mb: memory for specialised networks, in 10^6 bytes; those not used for longest make room.
        lambda_threshold: 0 or 0.5, instead of the file's own.
        outputs: the outputs to compute; what only others need is neither computed nor kept.
        precision: `int8` or `float32`, of specialised networks; int8 where None and the file was calibrated for it.
            (The generic graph of such a file computes in float32 with weights of 8 bits.)
        background: False to specialise before the first answer, so that every answer is the specialised network's.

    Attributes:
        metadata: what the file says of itself.
        precision: of specialised networks.
        threads: of one inference; may change once, when the first network has been measured.

    Raises:
        ArtefactError: the file is no model of deploytool, or onnxruntime refuses it.
        InputError: an argument is outside its range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Artefact,
        *,
        threads: int | None = None,
        cache_mb: float = 512.0,
        lambda_threshold: float | None = None,
        outputs: Sequence[str] = ("logits",),
        precision: str | None = None,
        background: bool = True,
    ) -> None:
        if not isinstance(cache_mb, int | float) or not 0 < cache_mb <= MAX_CACHE_MB:  # also false for NaN
            raise InputError(f"cache_mb (={cache_mb}) must be in (0, {MAX_CACHE_MB:g}]; it is 10^6 bytes")
        self.threads = available_threads() if threads is None else check_threads(threads)
        self._calibrated = threads is not None
        artefact = model if isinstance(model, Artefact) else read_artefact(model)
        self.metadata = artefact.metadata
        self._name = str(artefact.path)
        if lambda_threshold is not None:
            check_threshold(artefact, lambda_threshold)
        self._threshold = lambda_threshold
        self.precision = check_precision(artefact, precision)
        self._artefact = self._prepared(artefact, check_outputs(artefact, outputs))
        self._outputs = [value.name for value in self._artefact.graph.outputs]
        self._background = background
        self._cache: NetworkCache[Key] = NetworkCache(int(cache_mb * 1e6))
        self._layouts: dict[float, Layout | None] = {}
        self._generic: Network | None = None
        self._lock = threading.Lock()  # over the cache, the counters and what waits; held for moments
        self._building = threading.Lock()  # over specialising; one at a time, it uses all the memory bandwidth
        self._waiting: OrderedDict[Key, None] = OrderedDict()
        self._working = False
        self._failure: tuple[float, str] | None = None  # when something went wrong behind, and what
        self._warned = False
        self._generic_runs = self._specialized_runs = self._built = self._failed = 0
        if self.metadata.fixed:
            self._ready(self._key(None, None))
        elif background:
            self._generic_network()

    def __call__(self, image: Array, lam: float | Array | None = None, width: float | Array | None = None) -> Array:
        """Classify images.

        Args:
            image: (N, C, H, W) float32 in [0, 1].
            lam: lambda in [0, 1], one for all images or (N,); required by a conditional model, refused by a plain one.
            width: one of the file's widths, one for all images or (N,); the widest where None.

        Returns:
            logits (N, K) float32.

        Raises:
            InputError: shape, dtype, range, lambda or width are not as above, or the session has no logits.
        """
        self._check_computed("logits")
        return self.run(image, lam, width)["logits"]

    def run(
        self, image: Array, lam: float | Array | None = None, width: float | Array | None = None
    ) -> dict[str, Array]:
        """As `__call__`, with every output of the session by name.

        Images of equal lambda and width are answered together, so a batch costs one inference for each setting in it.
        """
        image = self.check_image(image)
        if _is_one(lam) and _is_one(width):
            return self._answer(image, self._key(lam, width))  # type: ignore[arg-type]
        lams, widths = self._each(lam, "lambda", len(image)), self._each(width, "width", len(image))
        groups: dict[Key, list[int]] = {}
        for index, pair in enumerate(zip(lams, widths, strict=True)):
            groups.setdefault(self._key(*pair), []).append(index)
        answers: dict[str, Array] = {}
        for key, rows in groups.items():
            for output, values in self._answer(image[rows], key).items():
                whole = answers.setdefault(output, np.empty((len(image), *values.shape[1:]), values.dtype))
                whole[rows] = values
        return answers

    def judge(
        self,
        image: Array,
        lam: float | Array | None = None,
        width: float | Array | None = None,
        threshold: float | None = None,
    ) -> list[Verdict]:
        """Classify images and judge each answer by its reasons; needs the outputs `logits` and `reasoning`.

        Args:
            image, lam, width: as in `__call__`.
            threshold: t_rsn in [0, 1], the share of reasoning labels that have to agree with the class's; the file's
                own where None.

        Returns:
            A verdict for each image; see `deploytool.runtime.reasoning`.

        Raises:
            InputError: as `__call__`, or the file has no reasoning labels, or the threshold is out of range.
        """
        reasoning = self.check_reasoning(threshold)
        self._check_computed("logits", "reasoning")
        answers = self.run(image, lam, width)
        return reasoning.judge(answers["logits"], answers["reasoning"], threshold)

    def doubt(self, image: Array, lam: float | Array | None = None, width: float | Array | None = None) -> list[Doubt]:
        """Say of images whether their answers are to be doubted; needs the output `cpl`.

        Args:
            image, lam, width: as in `__call__`.

        Returns:
            For each image its CPL and the threshold at its lambda; see `deploytool.runtime.library`.

        Raises:
            InputError: as `__call__`, or the file has no libraries, or the session has no CPL.
        """
        self.check_library()
        self._check_computed(CPL)
        cpl = self.run(image, lam, width)[CPL]
        return self.doubts(cpl, self._each(lam, "lambda", len(cpl)))

    def doubts(self, cpl: Array, lambdas: Sequence[float | None]) -> list[Doubt]:
        """As `doubt`, of CPL (N,) that `run` gave at these lambdas."""
        library, metadata = self.check_library(), self.metadata
        threshold = metadata.lambda_threshold if self._threshold is None else self._threshold
        at = [metadata.lam if lam is None else lam for lam in lambdas]
        return [Doubt(float(each), library.threshold(lam, threshold)) for each, lam in zip(cpl, at, strict=True)]

    def generic(self, image: Array, lam: float | None, width: float | None = None) -> Array:
        """The logits of the graph as it stands in the file: slower, and nothing to prepare for a new setting."""
        self._check_computed("logits")
        return self.run_generic(image, lam, width)["logits"]

    def run_generic(self, image: Array, lam: float | None, width: float | None = None) -> dict[str, Array]:
        """As `generic`, with every output of the session by name."""
        return self._run_generic(self.check_image(image), self._key(lam, width))

    def warm(
        self, lambdas: float | Iterable[float | None] | None, widths: float | Iterable[float | None] | None = None
    ) -> None:
        """Specialise to every pair of these lambdas and widths now, so that the next call of each is fast.

        Raises:
            ArtefactError: a setting cannot be specialised. InputError: one is out of range, or `cache_mb` does not
            hold them all.
        """
        pairs = itertools.product(_listed(lambdas), _listed(widths))
        keys = list(dict.fromkeys(self._key(lam, width) for lam, width in pairs))
        for key in keys:
            self._ready(key)
        with self._lock:
            kept = sum(key in self._cache for key in keys)
        if kept < len(keys):
            raise InputError(
                f"cache_mb (={self._cache.limit_bytes / 1e6:g}) holds {kept} of these {len(keys)} settings; "
                "name fewer, or open the session with more"
            )

    def counters(self) -> Counters:
        """What the session has done so far."""
        with self._lock:
            return Counters(
                generic=self._generic_runs,
                specialized=self._specialized_runs,
                built=self._built,
                failed=self._failed,
                evicted=self._cache.evicted,
                cached=len(self._cache),
                cached_mb=self._cache.nbytes / 1e6,
                waiting=len(self._waiting) + self._working,
            )

    def check_image(self, image: Array) -> Array:
        """Return the image if the model accepts it; raise InputError with what is wrong otherwise."""
        c, h, w = self.metadata.shape
        expected = f"(N, {c}, {h}, {w}) float32 in [0, 1]"
        if not isinstance(image, np.ndarray):
            raise InputError(f"image is a {type(image).__name__}; expected a numpy array {expected}")
        if image.dtype != np.float32:
            advice = "divide by 255 and convert" if image.dtype.kind in "ui" else "convert"
            raise InputError(f"image has dtype {image.dtype}; expected {expected}; {advice} with .astype(np.float32)")
        if image.ndim != 4 or image.shape[1:] != (c, h, w) or not len(image):
            raise InputError(f"image has shape {image.shape}; expected {expected} with N at least 1")
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise InputError(f"image has values from {low:g} to {high:g}; expected {expected} without NaN")
        return image

    def check_lambda(self, lam: float | None) -> float | None:
        """Return lambda if the model accepts it; raise InputError with what is wrong otherwise."""
        return check_file_lambda(self._artefact, lam)

    def check_width(self, width: float | None) -> float:
        """Return a width that the file holds, the widest where None; raise InputError otherwise."""
        return check_file_width(self._artefact, width)

    def check_reasoning(self, threshold: float | None = None) -> Reasoning:
        """Return what the file's reasons mean; raise InputError where it has none, or t_rsn is out of range."""
        if self.metadata.reasoning is None:
            raise InputError(f"{self._name} has no reasoning labels; train with a recipe that has them, and export it")
        if threshold is not None:
            check_reasoning_threshold(threshold)
        return self.metadata.reasoning

    def check_library(self) -> LibraryNote:
        """Return what the file says of its libraries; raise InputError where it has none."""
        if self.metadata.library is None:
            raise InputError(f"{self._name} has no output `cpl`; export it with --library")
        return self.metadata.library

    def _check_computed(self, *outputs: str) -> None:
        if not set(outputs) <= set(self._outputs):
            wanted = " and ".join(outputs)
            raise InputError(f"this session computes {', '.join(self._outputs)}; name {wanted} among its outputs")

    def _key(self, lam: float | None, width: float | None) -> Key:
        lam = self.check_lambda(lam)
        return None if lam is None else as_single(lam), self.check_width(width)

    def _each(self, values: float | Array | None, name: str, count: int) -> Sequence[float | None]:
        """One value for each image."""
        if _is_one(values):
            return [values] * count  # type: ignore[list-item]
        each = np.array(values, object) if isinstance(values, list | tuple) else np.asarray(values)
        if each.shape != (count,):
            raise InputError(f"{name} has shape {each.shape}; expected one number, or ({count},) for these images")
        return each.tolist()  # type: ignore[no-any-return]

    def _prepared(self, artefact: Artefact, outputs: Sequence[str]) -> Artefact:
        """The artefact with everything computed that depends on no image and no knob."""
        given = {} if self._threshold is None else {"lambda_threshold": np.array(self._threshold, np.float32)}
        try:
            return replace(artefact, graph=evaluate(select_outputs(artefact.graph, outputs), given))
        except Exception as error:  # whatever numpy and protobuf say of a damaged graph
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise ArtefactError(f"{self._name} cannot be evaluated ({reason}); export it again") from None

    def _answer(self, image: Array, key: Key) -> dict[str, Array]:
        with self._lock:
            network = self._cache.get(key)
        if network is None and self._background:
            answers = self._run_generic(image, key)
            self._specialize_later(key)  # after the answer, which it would slow down
            return answers
        if network is None:
            network = self._ready(key)
        with self._lock:
            self._specialized_runs += 1
        return self._checked(network.run({"image": image}), len(image))

    def _run_generic(self, image: Array, key: Key) -> dict[str, Array]:
        network = self._generic_network()
        with self._lock:
            self._generic_runs += 1
        knobs = dict(zip(("lambda", "width"), key, strict=True))
        taken = {value.name for value in self._artefact.graph.inputs}
        feed = {name: np.array(value, np.float32) for name, value in knobs.items() if name in taken}
        return self._checked(network.run({"image": image, **feed}), len(image))

    def _checked(self, values: Sequence[Array], count: int) -> dict[str, Array]:
        answers = dict(zip(self._outputs, values, strict=True))
        sizes: dict[str, tuple[int, ...]] = {
            "logits": (len(self.metadata.classes),),
            SALIENCY: (1, *self.metadata.shape[1:]),
            CPL: (),
        }
        if self.metadata.reasoning is not None:
            sizes["reasoning"] = (len(self.metadata.reasoning.labels),)
        for name, value in answers.items():
            expected = (count, *sizes.get(name, np.shape(value)[1:]))
            if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != expected:
                raise ArtefactError(f"{self._name}: `{name}` are not {expected} float32; export it again")
            if not np.isfinite(value).all():
                raise ArtefactError(f"{self._name}: its {name} are NaN or infinite; its weights are damaged")
            if name in ("reasoning", SALIENCY):
                if not (value.min() >= 0 and value.max() <= 1 + SIGMOID_SLACK):
                    what = "probabilities" if name == "reasoning" else "values in [0, 1]"
                    raise ArtefactError(f"{self._name}: its {name} are no {what}; export it again")
                answers[name] = np.minimum(value, np.float32(1))
            if name == CPL:
                if not np.abs(value).max() <= 1 + SLACK:
                    raise ArtefactError(f"{self._name}: its {name} are no values in [-1, 1]; export it again")
                answers[name] = np.clip(value, np.float32(-1), np.float32(1))
        return answers

    def _generic_network(self) -> Network:
        """The graph as it stands in the file, its weights not copied: it cannot prepack them anyway."""
        network = self._generic
        if network is None:
            network = self._generic = fed_network(self._artefact.graph, self.threads, self._name)
        return network

    def _specialize_later(self, key: Key) -> None:
        """Ask the background for a setting, unless it was asked already; say once if it has failed."""
        with self._lock:
            failure = self._failure
            if failure is None or time.monotonic() - failure[0] > RETRY_S:
                self._waiting[key] = None
                self._waiting.move_to_end(key)
                while len(self._waiting) > MAX_WAITING:  # a slider was moved; only where it rests matters
                    self._waiting.popitem(last=False)
                if not self._working:
                    self._start_working()
            failure = self._failure if not self._warned else None
            self._warned = self._warned or failure is not None
        if failure:
            text = f"{failure[1]}; the generic graph goes on answering, more slowly (this is said once)"
            warnings.warn(text, SpecializationWarning, stacklevel=5)

    def _start_working(self) -> None:
        try:
            threading.Thread(target=self._work, name="deploytool-specialize").start()
            self._working = True
        except RuntimeError as error:  # no more threads to be had
            self._waiting.clear()
            self._failure = time.monotonic(), f"specialising cannot start ({error})"

    def _work(self) -> None:
        """Specialise to what waits, the latest first, until nothing does or the program ends."""
        if self._calibrated and self.threads == 1:  # threads that a session starts would be as nice as this one
            _give_way()
        while True:
            with self._lock:
                if not self._waiting or not threading.main_thread().is_alive():
                    self._working = False
                    return
                key, _ = self._waiting.popitem()
            try:
                self._ready(key)
            except Exception as error:  # out of memory, a damaged graph: the generic graph still answers
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                with self._lock:
                    self._waiting.clear()  # whatever is short is short for the others too
                    self._failure = time.monotonic(), f"lambda {key[0]}, width {key[1]:g} failed ({reason})"

    def _ready(self, key: Key) -> Network:
        """The network of a setting, made now if need be."""
        with self._building:
            with self._lock:
                network = self._cache.get(key)
            if network is not None:
                return network
            try:
                network = self._build(key)
            except Exception:
                with self._lock:
                    self._failed += 1
                raise
            with self._lock:
                self._built += 1
                self._failure = None
                self._cache.put(key, network)
            return network

    def _build(self, key: Key) -> Network:
        lam, width = key
        graph = self._artefact.graph
        if not self.metadata.fixed:
            graph = specialized_graph(self._artefact, lam, self._threshold, width, self._outputs, self.precision)
        layout = self._layout(graph, width)
        if layout is not None and layout.fits(graph):
            with self._lock:
                others = [each.constants for each in self._cache.networks() if isinstance(each, FedNetwork)]
            arranged = share(layout.arrange(graph), others)

            def network(threads: int) -> Network:
                return layout.network(arranged, threads, self._name)
        else:

            def network(threads: int) -> Network:
                return OwnSession(graph, threads, self._name)

        if not self._calibrated:
            self._calibrate(graph, network)
        return network(self.threads)

    def _layout(self, graph: Graph, width: float) -> Layout | None:
        """How to feed one session for all settings of a width; None where each has a session of its own."""
        size = sum(value.nbytes for value in graph.constants.values())
        if self.metadata.fixed or self.precision == "int8" or size < SHARED_FROM_BYTES:
            return None
        if width not in self._layouts:
            self._layouts[width] = learn_layout(graph, self._artefact.graph.constants, self._name)
        return self._layouts[width]

    def _calibrate(self, graph: Graph, network: Any) -> None:
        """Choose the number of threads, once."""
        image = {"image": np.zeros((1, *self.metadata.shape), np.float32)}

        def candidate(threads: int) -> Inference:
            made = network(threads)
            return lambda: made.run(image)

        threads = calibrated_threads(graph, candidate)
        self._calibrated = True
        for layout in self._layouts.values():
            if layout is not None:
                layout.keep_session(threads)
        if threads != self.threads:
            self.threads = threads
            if self._generic is not None:
                self._generic = fed_network(self._artefact.graph, threads, self._name)


def _is_one(value: object) -> bool:
    """Whether a knob is one value (a number, None, or what will be refused) and not a sequence of them."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0
    return isinstance(value, str | np.generic) or not isinstance(value, Iterable)


def _listed(values: float | Iterable[float | None] | None) -> list[float | None]:
    return [values] if _is_one(values) else list(values)  # type: ignore[arg-type, list-item]


def _give_way() -> None:
    """Let this thread take a tenth of a core that answers need; where a thread has no priority of its own, nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
