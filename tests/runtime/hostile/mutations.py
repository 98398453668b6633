"""Model files damaged at random: bytes of the file, or the model that stands in it.

A seed always gives the same file of the same sources, so that what was found once can be looked at again.
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

Edit = Callable[[Random, onnx.ModelProto], None]

INTEGERS = [*range(-3, 10), 16, 64, 65, 255, 1000, 4096, 2**20, 2**28, 2**31 - 1, 2**31, -(2**31), 10**9, 10**12]
INTEGERS += [-(10**12), 2**62, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, -1.0, 1e-45, 3e38, -3e38, float("inf"), float("-inf"), float("nan"), 1e10]
TEXTS = [
    *("", "x", "\x00", "\u2028", "\n0.5", "0.5\n", "\n\n3", "\x1b[31mred\n", "nothing\nelse" * 50, "switch", "int8"),
    *("NaN", "Infinity", "-1", "-0.0", "1e999", "1e-400", "9" * 5000, "null", "true", "{}", "[]", "[[]]", "[NaN, 1.0]"),
    *("[0.5, 1.0]", "[1.0, 0.5]", "[0.5, 0.5]", "[-1, 1.0]", '["1.0"]', "[[0.5], 1.0]", "[" + "1," * 20_000 + "1]"),
    *('["a", "b"]', '["a\\nb", "c"]', '["\\ud800", "b"]', "[null, null]", "[" * 5000, "[" * 5000 + "]" * 5000),
    *('{"mode": "L"}', '{"mode": "RGB"}', '{"mode": "\\n"}', '{"mode": [[[]]]}'),
]
OPERATORS = "Abs Add ArgMin Cast Clip Concat ConstantOfShape Conv CumSum DequantizeLinear Div Expand Flatten Gather"
OPERATORS += " Gemm Greater Identity If LayerNormalization LeakyRelu Loop MatMul Max MaxPool Mul NonZero NoSuchOperator"
OPERATORS += " Pad QuantizeLinear RandomNormalLike Range ReduceMean ReduceSum Relu Reshape Resize Slice Softmax"
OPERATORS += " Split Sqrt Tile TopK Transpose Where"


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """Cut, flip, swap, insert, repeat or drop bytes."""
    damaged = bytearray(data)

    def place() -> int:  # mostly outside the weights, which fill the file and break nothing
        spans = [(0, 7000), (len(data) - 3000, len(data)), (0, len(data))]
        low, high = random.choice(spans)
        return random.randrange(max(0, low), max(1, min(high, len(damaged))))

    match random.choice(["cut", "flip", "flip", "flip", "swap", "insert", "repeat", "drop"]):
        case "cut":
            del damaged[random.randrange(len(damaged)) :]
        case "flip":
            for _ in range(random.randint(1, 32)):
                damaged[place()] = random.choice([random.randrange(256), 0, 1, 8, 18, 0x7F, 0x80, 0xFF])
        case "swap":
            a, b, size = place(), place(), random.choice([1, 4, 16, 256, 4096])
            damaged[a : a + size], damaged[b : b + size] = damaged[b : b + size], damaged[a : a + size]
        case "insert":
            at = place()
            damaged[at:at] = random.randbytes(random.choice([1, 2, 8, 100, 5000]))
        case "repeat":
            at, to = place(), place()
            damaged[to:to] = damaged[at : at + random.choice([2, 16, 100, 1000, 20_000])]
        case _:
            at = place()
            del damaged[at : at + random.choice([1, 2, 8, 100, 5000])]
    return bytes(damaged)


def metadata(random: Random, model: onnx.ModelProto) -> None:
    """Another text in a property, or a property twice."""
    entry = random.choice(model.metadata_props)
    if random.random() < 0.2:
        twin = model.metadata_props.add()
        twin.CopyFrom(entry)
        entry = twin
    entry.value = random.choice(TEXTS)


def tensor_shape(random: Random, model: onnx.ModelProto) -> None:
    """Other dimensions, with or without data that fit them."""
    tensor = random.choice(model.graph.initializer)
    sizes = list(tensor.dims) or [1]
    match random.randrange(4):
        case 0:
            sizes[random.randrange(len(sizes))] = random.choice(INTEGERS)
        case 1:
            sizes.insert(random.randint(0, len(sizes)), random.choice([-1, 0, 1, 2]))
        case 2:
            random.shuffle(sizes)
        case _:
            sizes = [random.choice(INTEGERS) for _ in range(random.choice([0, 1, 2, 4, 70]))]
    tensor.dims[:] = sizes
    count = float(np.prod([float(size) for size in sizes]))
    if random.random() < 0.4 and 0 <= count < 1 << 20:
        tensor.raw_data = bytes(int(count) * (8 if tensor.data_type == TensorProto.INT64 else 4))


def tensor_data(random: Random, model: onnx.ModelProto) -> None:
    """Too few or too many data, of another type, elsewhere, or none."""
    tensor = random.choice(model.graph.initializer)
    match random.randrange(7):
        case 0:
            tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data) + 1)]
        case 1:
            tensor.raw_data += b"\1" * random.choice([1, 4, 8, 1000])
        case 2:
            tensor.ClearField("raw_data")
            tensor.float_data.extend([1.0] * random.choice([0, 1, 4, 1000]))
        case 3:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=random.choice(["/etc/hostname", "*/_ORT_MEM_ADDR_/*", ""]))
            tensor.external_data.add(key="offset", value=random.choice(["0", "-1", "140000000000000", "x"]))
        case 4:
            tensor.segment.end = random.choice(INTEGERS)
        case 5:
            tensor.data_type = random.choice([*range(-1, 26), 1000])
        case _:
            kind = random.choice(["float16", "float64", "int32", "int8", "bool", "int64", "float32", "U4"])
            with np.errstate(all="ignore"):
                array = numpy_helper.to_array(tensor).astype(kind)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(object) if kind == "U4" else array, tensor.name))


def _change_values(random: Random, model: onnx.ModelProto, kind: int, numbers: Sequence[float]) -> None:
    tensor = random.choice([tensor for tensor in model.graph.initializer if tensor.data_type == kind])
    array = numpy_helper.to_array(tensor).copy()
    for _ in range(random.choice([1, 1, 2, array.size]) if array.size else 0):
        array.reshape(-1)[random.randrange(array.size)] = random.choice(numbers)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def integers(random: Random, model: onnx.ModelProto) -> None:
    """Other operands of Slice, Split, Tile, Reshape."""
    _change_values(random, model, TensorProto.INT64, INTEGERS)


def floats(random: Random, model: onnx.ModelProto) -> None:
    """Weights that overflow, vanish or are no numbers."""
    _change_values(random, model, TensorProto.FLOAT, FLOATS)


def _names(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    named = [value.name for values in (graph.initializer, graph.input, graph.output) for value in values]
    return [*named, *(name for node in graph.node for name in node.output), "", "nothing"]


def wiring(random: Random, model: onnx.ModelProto) -> None:
    """Other inputs and outputs of nodes: cycles, names used twice, nodes twice, missing or out of order."""
    nodes, names = model.graph.node, _names(model)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        node = random.choice(nodes)
        match random.choice(
            ["input", "input", "input", "more", "fewer", "output", "outputs", "twice", "order", "drop"]
        ):
            case "input" if node.input:
                node.input[random.randrange(len(node.input))] = random.choice(names)
            case "more":
                node.input.append(random.choice(names))
            case "fewer" if node.input:
                del node.input[random.randrange(len(node.input))]
            case "output" if node.output:
                node.output[random.randrange(len(node.output))] = random.choice(names)
            case "outputs":
                node.output.append(random.choice([*names, "new"]))
            case "twice":
                nodes.add().CopyFrom(node)
            case "order":
                other, kept = random.choice(nodes), onnx.NodeProto()
                kept.CopyFrom(node)
                node.CopyFrom(other)
                other.CopyFrom(kept)
            case "drop" if len(nodes) > 1:
                nodes.remove(node)
    if random.random() < 0.1:
        random.choice(model.graph.initializer).name = random.choice(names)


def operators(random: Random, model: onnx.ModelProto) -> None:
    """Another operator in a node's place."""
    node = random.choice(model.graph.node)
    node.op_type = random.choice(OPERATORS.split())
    if random.random() < 0.5:
        del node.attribute[:]
    if random.random() < 0.1:
        node.domain = random.choice(["com.microsoft", "ai.onnx", "ai.onnx.ml", "no.such.domain"])


def attributes(random: Random, model: onnx.ModelProto) -> None:
    """Strides of 0, pads of 10**9, axis 99, attributes twice, of another type or of another node."""
    bearing = [node for node in model.graph.node if node.attribute]
    for _ in range(random.choice([1, 1, 2, 4])):
        node = random.choice(bearing)
        attribute = random.choice(node.attribute)
        if random.random() < 0.1:
            attribute.type = random.choice(range(15))
        elif random.random() < 0.1:
            node.attribute.add().CopyFrom(random.choice(random.choice(bearing).attribute))
        elif attribute.ints and random.random() < 0.2:
            attribute.ints.append(random.choice(INTEGERS))
        elif attribute.ints:
            attribute.ints[random.randrange(len(attribute.ints))] = random.choice(INTEGERS)
        elif attribute.type == AttributeProto.INT:
            attribute.i = random.choice(INTEGERS)
        elif attribute.type == AttributeProto.FLOAT:
            attribute.f = random.choice(FLOATS)
        else:
            attribute.s = random.choice([b"", b"SAME_UPPER", b"VALID", b"\xff\xfe", b"reflect", b"x" * 10_000])


def interface(random: Random, model: onnx.ModelProto) -> None:
    """Other sizes, types and names of what the model takes and gives."""
    value = random.choice([model.graph.input[0], *model.graph.input, *model.graph.output])
    kind = value.type.tensor_type
    match random.choice(["size", "size", "sizes", "type", "rank", "name", "twice"]):
        case "size" if kind.shape.dim:
            random.choice(kind.shape.dim).dim_value = random.choice([*INTEGERS, 4000, 20_000])
        case "sizes":
            for dim in kind.shape.dim[1:]:
                dim.dim_value = random.choice([1, 3, 8, 16, 100, 1000, 8192])
        case "type":
            kind.elem_type = random.choice([*range(-1, 26), 1000])
        case "rank":
            kind.shape.dim.add().dim_value = random.choice(INTEGERS)
        case "name":
            value.name = random.choice([*_names(model), "width", "lambda"])
        case _:
            twin = random.choice([model.graph.input, model.graph.output, model.graph.value_info]).add()
            twin.CopyFrom(value)
            twin.name = random.choice([*_names(model), "width", "lambda"])


def header(random: Random, model: onnx.ModelProto) -> None:
    """Other versions and operator sets."""
    match random.randrange(4):
        case 0:
            model.opset_import[0].version = random.choice([*INTEGERS, *range(1, 27)])
        case 1:
            model.opset_import.add(domain=random.choice(["", "com.microsoft", "x"]), version=random.choice([1, 18, -1]))
        case 2:
            model.ir_version = random.choice([*INTEGERS, *range(1, 15)])
        case _:
            model.producer_name, model.graph.name = random.choice(TEXTS), random.choice(TEXTS)


EDITS: tuple[Edit, ...] = (
    *(metadata, tensor_shape, tensor_data, integers, integers, floats, wiring, wiring),
    *(operators, operators, attributes, attributes, interface, header),
)


def damaged_model(seed: int, sources: Sequence[bytes]) -> bytes:
    """The file of a seed: one of the sources with damaged bytes, or with one to three edits of the model in it."""
    random = Random(seed)
    source = random.choice(sources)
    if random.random() < 0.35:
        return damaged_bytes(random, source)
    model = onnx.ModelProto.FromString(source)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        try:
            random.choice(EDITS)(random, model)
        except Exception:
            continue  # an edit met what an earlier one left
    return model.SerializeToString()
