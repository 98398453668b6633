"""Networks that answer images: an onnxruntime session of its own, or one session shared by all settings.

Session of its own:   weights are constants; onnxruntime optimises, and copies them into its own layout.
Shared session:       weights are inputs, bound in the layout that the optimised graph reads
                      (`deploytool.runtime.layout`); a setting is a set of arrays, and equal arrays are kept once.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from deploytool.errors import ArtefactError
from deploytool.runtime.graph import Graph, assemble

Array = np.ndarray[Any, Any]

EXTERNAL_FROM_BYTES = 1024
MAX_BINDINGS = 32


class Network(Protocol):
    """A network ready to answer."""

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Compute the outputs, in the graph's order. Raises ArtefactError where onnxruntime fails."""
        ...

    def footprint(self) -> dict[int, int]:
        """Bytes of each piece of memory that the network holds, by identity: pieces may be shared."""
        ...


class OwnSession:
    """A network in an onnxruntime session of its own.

    Args:
        graph: the network.
        threads: threads of one inference.
        name: of the model, for messages.

    Attributes:
        outputs: names, in the order in which `run` gives them.
    """

    def __init__(self, graph: Graph, threads: int, name: str) -> None:
        self._name = name
        self.outputs = [value.name for value in graph.outputs]
        self._bytes = sum(value.nbytes for value in graph.constants.values())
        self._session = open_graph(graph, name, session_options(threads))

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """See `Network`."""
        return run_session(self._session, self.outputs, feed, self._name)

    def footprint(self) -> dict[int, int]:
        """See `Network`; the weights as stored, which onnxruntime holds in a layout of its own."""
        return {id(self): self._bytes}


class FedNetwork:
    """A network whose constants are inputs of a session that other networks use too.

    Args:
        session: of a graph whose inputs are the images and these constants.
        constants: what to feed; C-contiguous.
        outputs: names of the outputs to compute.
        name: of the model, for messages.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        constants: Mapping[str, Array],
        outputs: Sequence[str],
        name: str,
    ) -> None:
        self.constants = constants
        self._name = name
        self._session = session
        self._outputs = outputs
        self._values = {key: onnxruntime.OrtValue.ortvalue_from_numpy(value) for key, value in constants.items()}
        # A binding holds the inputs of one run: threads that run at once take one each.
        self._free: deque[onnxruntime.IOBinding] = deque(maxlen=MAX_BINDINGS)
        self._nothing = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32))

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """See `Network`."""
        try:
            binding = self._free.pop()
        except IndexError:
            binding = self._session.io_binding()
            for key, value in self._values.items():
                binding.bind_ortvalue_input(key, value)
        arrays = {key: np.ascontiguousarray(array) for key, array in feed.items()}  # alive until the run is over
        try:
            for key, array in arrays.items():
                binding.bind_ortvalue_input(key, onnxruntime.OrtValue.ortvalue_from_numpy(array))
            for output in self._outputs:
                binding.bind_output(output)
            self._session.run_with_iobinding(binding)
            answers = [value.numpy() for value in binding.get_outputs()]
        except Exception as error:
            raise _failure(self._name, error) from None
        binding.clear_binding_outputs()
        for key in arrays:  # a binding at rest keeps no batch in memory
            binding.bind_ortvalue_input(key, self._nothing)
        self._free.append(binding)
        return answers

    def footprint(self) -> dict[int, int]:
        """See `Network`."""
        return {id(value): value.nbytes for value in self.constants.values()}


def feedable(graph: Graph) -> dict[str, Array]:
    """The constants of a graph that are worth feeding instead of copying: large, of float32, contiguous."""
    return {
        name: value
        for name, value in graph.constants.items()
        if value.dtype == np.float32 and value.nbytes >= EXTERNAL_FROM_BYTES and value.flags.c_contiguous
    }


def fed_network(graph: Graph, threads: int, name: str) -> FedNetwork:
    """A network of a graph as it stands, its large constants fed and so not copied."""
    fed = feedable(graph)
    session = open_session(assemble(graph, fed=fed).SerializeToString(), threads, name)
    return FedNetwork(session, fed, [value.name for value in graph.outputs], name)


def share(constants: Mapping[str, Array], others: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """Replace each float32 array by one of the same name and bits among `others`, where there is one."""
    shared = dict(constants)
    for other in others:
        shared.update((name, other[name]) for name, value in constants.items() if _same(value, other.get(name)))
    return shared


def _same(value: Array, other: Array | None) -> bool:
    if other is None or other.shape != value.shape:
        return False
    bits, others = value.view(np.uint32).ravel(), other.view(np.uint32).ravel()
    return np.array_equal(bits[:64], others[:64]) and np.array_equal(bits, others)  # the first few nearly always tell


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options for the CPU with idle threads asleep, not spinning, and nothing printed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    model: bytes,
    threads: int,
    name: str,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """Open an onnxruntime session on the CPU.

    Args:
        model: the ONNX file's bytes.
        threads: threads of one inference.
        name: for messages.
        options: instead of `session_options(threads)`.

    Raises:
        ArtefactError: onnxruntime refuses the model; the message says why in one line.
    """
    options = options or session_options(threads)
    try:
        # fallback: to the CPU again, announced on standard output
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise ArtefactError(f"{name} is refused by onnxruntime: {_one_line(error)}") from None


def open_graph(graph: Graph, name: str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Open a session of a graph, its large constants handed over beside the file: nothing is serialised."""
    large = {key: value for key, value in graph.constants.items() if value.nbytes >= EXTERNAL_FROM_BYTES}
    model = assemble(replace(graph, constants={key: v for key, v in graph.constants.items() if key not in large}))
    for key, value in large.items():
        tensor = model.graph.initializer.add()
        tensor.name, tensor.data_location = key, TensorProto.EXTERNAL
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor.dims.extend(value.shape)
        for entry, text in (("location", "in-memory"), ("offset", "0"), ("length", str(value.nbytes))):
            tensor.external_data.add(key=entry, value=text)
    if large:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for value in large.values()]
        options.add_external_initializers(list(large), values)
    return open_session(model.SerializeToString(), options.intra_op_num_threads, name, options)


def run_session(
    session: onnxruntime.InferenceSession, outputs: list[str] | None, feed: Mapping[str, Array], name: str
) -> list[Array]:
    """Run a session once; a graph that opens may still fail on its input.

    Raises:
        ArtefactError: it failed; the message says why in one line.
    """
    try:
        return session.run(outputs, dict(feed))  # type: ignore[no-any-return]
    except Exception as error:
        raise _failure(name, error) from None


def _failure(name: str, error: Exception) -> ArtefactError:
    return ArtefactError(f"{name} fails in onnxruntime: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
