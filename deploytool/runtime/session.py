"""Running model.onnx: numpy in, numpy out, at a plain model's speed for every lambda."""

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

import numpy as np
import onnx
import onnxruntime

from deploytool.errors import ArtefactError, InputError
from deploytool.models.setting import as_single
from deploytool.runtime.artefact import Artefact, read_artefact
from deploytool.runtime.partial import check_file_lambda, check_file_width, check_threshold, specialized_model
from deploytool.runtime.threads import check_threads

Array = np.ndarray[Any, Any]


class Session:
    """An exported model, ready to answer.

        session = Session("model.onnx")
        logits = session(image, lam=0.3)

    The first call with a new lambda or width specialises the graph to it (`deploytool.runtime.partial`); the last few
    specialised networks are kept. May be called from several threads at once.

    Args:
        model: path of a file that `deploytool export` or `specialize` wrote, or one already read.
        threads: threads of one inference; by default what affinity and cgroup quota allow.
        keep: how many specialised networks to keep.
        lambda_threshold: 0 or 0.5, instead of the file's own.

    Attributes:
        metadata: what the file says of itself.

    Raises:
        ArtefactError: the file is no model of deploytool, or onnxruntime refuses it.
        InputError: an argument is outside its range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Artefact,
        *,
        threads: int | None = None,
        keep: int = 4,
        lambda_threshold: float | None = None,
    ) -> None:
        if keep < 1:
            raise InputError(f"keep (={keep}) must be at least 1")
        self.threads = check_threads(threads)
        self._artefact = model if isinstance(model, Artefact) else read_artefact(model)
        self.metadata = self._artefact.metadata
        self._threshold = None if lambda_threshold is None else check_threshold(self._artefact, lambda_threshold)
        self._keep = keep
        self._plain: OrderedDict[tuple[float | None, float], Future[onnxruntime.InferenceSession]] = OrderedDict()
        self._generic: onnxruntime.InferenceSession | None = None
        self._lock = threading.Lock()
        if self.metadata.fixed:
            self._network(None, self.check_width(None))

    def __call__(self, image: Array, lam: float | None = None, width: float | None = None) -> Array:
        """Classify images.

        Args:
            image: (N, C, H, W) float32 in [0, 1].
            lam: lambda in [0, 1]; required by a conditional model, refused by a plain one.
            width: one of the file's widths; the widest where None.

        Returns:
            logits (N, K) float32.

        Raises:
            InputError: shape, dtype, range, lambda or width are not as above.
        """
        image = self.check_image(image)
        network = self._network(self.check_lambda(lam), self.check_width(width))
        return self._run(network, {"image": image})

    def generic(self, image: Array, lam: float | None, width: float | None = None) -> Array:
        """As `__call__`, on the graph as it stands in the file: slower, and nothing to prepare for a new setting."""
        image = self.check_image(image)
        knobs = {"lambda": self.check_lambda(lam), "width": self.check_width(width)}
        with self._lock:
            if self._generic is None:
                self._generic = self._open(self._with_threshold())
        taken = {value.name for value in self._artefact.model.graph.input}
        feed = {name: np.array(value, np.float32) for name, value in knobs.items() if name in taken}
        return self._run(self._generic, {"image": image, **feed})

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

    def _network(self, lam: float | None, width: float) -> onnxruntime.InferenceSession:
        """The network of a setting; threads that want another one do not wait while it is made."""
        key = None if lam is None else as_single(lam), width
        with self._lock:
            made = self._plain.get(key)
            first = made is None
            if made is None:
                made = self._plain[key] = Future()
                while len(self._plain) > self._keep:
                    self._plain.popitem(last=False)
            self._plain.move_to_end(key)
        if first:
            try:
                made.set_result(self._open(self._plain_model(lam, width)))
            except BaseException as error:
                with self._lock:
                    self._plain.pop(key, None)
                made.set_exception(error)
        return made.result()

    def _plain_model(self, lam: float | None, width: float) -> onnx.ModelProto:
        if self.metadata.fixed:
            return self._artefact.model
        return specialized_model(self._artefact, lam, self._threshold, width)

    def _with_threshold(self) -> onnx.ModelProto:
        if self._threshold is None:
            return self._artefact.model
        model = onnx.ModelProto()
        model.CopyFrom(self._artefact.model)
        for tensor in model.graph.initializer:
            if tensor.name == "lambda_threshold":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(self._threshold, np.float32), tensor.name))
        return model

    def _run(self, network: onnxruntime.InferenceSession, feed: dict[str, Array]) -> Array:
        logits = run_session(network, ["logits"], feed, str(self._artefact.path))[0]
        expected = len(feed["image"]), len(self.metadata.classes)
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.shape != expected:
            raise ArtefactError(f"{self._artefact.path}: `logits` are not {expected} float32; export it again")
        if not np.isfinite(logits).all():
            raise ArtefactError(f"{self._artefact.path}: its logits are NaN or infinite; its weights are damaged")
        return logits

    def _open(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        return open_session(model.SerializeToString(), self.threads, str(self._artefact.path))


def open_session(model: bytes, threads: int, name: str) -> onnxruntime.InferenceSession:
    """Open an onnxruntime session on the CPU with idle threads asleep, not spinning.

    Raises:
        ArtefactError: onnxruntime refuses the model; the message says why in one line.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # fallback: to the CPU again, announced on standard output
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise ArtefactError(f"{name} is refused by onnxruntime: {' '.join(str(error).split())[:200]}") from None


def run_session(
    network: onnxruntime.InferenceSession, outputs: list[str] | None, feed: dict[str, Array], name: str
) -> list[Array]:
    """Run a network once; a graph that opens may still fail on its input.

    Raises:
        ArtefactError: it failed; the message says why in one line.
    """
    try:
        return network.run(outputs, feed)  # type: ignore[no-any-return]
    except Exception as error:
        raise ArtefactError(f"{name} fails in onnxruntime: {' '.join(str(error).split())[:200]}") from None
