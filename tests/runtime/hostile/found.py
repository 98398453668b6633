"""Files that ended the process, took its memory or its time, or let out an error of another kind, once; by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Exported files: conditional, plain, wide (of several widths), small (INT8, sparse), explained (with saliency maps),
# agreeing (with libraries).
Sources = Mapping[str, bytes]
Found = Callable[[Sources], bytes]

FOUND: dict[str, Found] = {}


def edited(edit: Callable[[onnx.ModelProto], object], source: str = "conditional") -> Found:
    def file(sources: Sources) -> bytes:
        model = onnx.ModelProto.FromString(sources[source])
        edit(model)
        return model.SerializeToString()

    return file


def edit_of(source: str = "conditional") -> Callable[[Callable[[onnx.ModelProto], object]], None]:
    """Add an edit of a source to FOUND, under the edit's name."""

    def add(edit: Callable[[onnx.ModelProto], object]) -> None:
        FOUND[edit.__name__] = edited(edit, source)

    return add


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def constant(model: onnx.ModelProto, name: str, values: Any, kind: type = np.int64) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
    return name


def on_the_image(model: onnx.ModelProto, op: str, inputs: Sequence[str] = (), **attributes: Any) -> onnx.NodeProto:
    """Put a node between the image and whoever reads it."""
    for reader in model.graph.node:
        reader.input[:] = ["image.changed" if name == "image" else name for name in reader.input]
    model.graph.node.insert(0, helper.make_node(op, ["image", *inputs], ["image.changed"], **attributes))
    return model.graph.node[0]


def set_property(key: str, text: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        properties = {entry.key: entry.value for entry in model.metadata_props}
        helper.set_model_props(model, properties | {f"deploytool.{key}": text})

    return edit


FOUND |= {
    f"sound_{source}": lambda sources, source=source: sources[source]
    for source in ("conditional", "plain", "wide", "small", "explained", "agreeing")
}


# What ended the process inside onnxruntime 1.31 or onnx 1.23.


@edit_of()
def split_in_fewer_parts_than_outputs(model: onnx.ModelProto) -> None:
    node(model, "Split").attribute[0].i = 3


@edit_of()
def split_of_the_image_in_fewer_parts(model: onnx.ModelProto) -> None:
    split = on_the_image(model, "Split", num_outputs=1, axis=2)
    split.output.extend(["second", "third"])


@edit_of("plain")
def normal_noise_without_variance(model: onnx.ModelProto) -> None:
    on_the_image(model, "RandomNormalLike", scale=0.0)


@edit_of("plain")
def uniform_noise_between_swapped_bounds(model: onnx.ModelProto) -> None:
    on_the_image(model, "RandomUniformLike", low=1e30)


@edit_of("plain")
def layer_normalization_without_bias(model: onnx.ModelProto) -> None:
    on_the_image(model, "LayerNormalization", [constant(model, "ones", 0, np.float32), ""], axis=1)


@edit_of("plain")
def gathering_with_negative_batch_dimensions(model: onnx.ModelProto) -> None:
    on_the_image(model, "GatherND", [constant(model, "places", np.ones((8, 4, 8, 4)))], batch_dims=-(2**31))


@edit_of("plain")
def the_least_integer_over_minus_one(model: onnx.ModelProto) -> None:
    least = np.full((1, 1, 8, 8), -(2**31))
    on_the_image(model, "Cast", to=TensorProto.INT32).output[0] = "whole"
    names = constant(model, "none", 0, np.int32), constant(model, "least", least, np.int32)
    for index, (op, other) in enumerate([("Mul", names[0]), ("Add", names[1])]):
        before, after = ("whole", "product") if index == 0 else ("product", "sum")
        model.graph.node.insert(1 + index, helper.make_node(op, [before, other], [after]))
    model.graph.node.insert(3, helper.make_node("Div", ["sum", constant(model, "minus", -1, np.int32)], ["quotient"]))
    model.graph.node.insert(4, helper.make_node("Cast", ["quotient"], ["image.changed"], to=TensorProto.FLOAT))


# What took memory or time without end.


@edit_of()
def split_in_very_many_parts(model: onnx.ModelProto) -> None:
    node(model, "Split").attribute[0].i = 2**28


@edit_of("wide")
def an_image_of_a_million_rows(model: onnx.ModelProto) -> None:
    next(value for value in model.graph.input if value.name == "image").type.tensor_type.shape.dim[2].dim_value = 2**20


@edit_of("plain")
def a_pool_over_windows_without_end(model: onnx.ModelProto) -> None:
    """Padded on all sides, so that its output is no larger than the image."""
    on_the_image(model, "MaxPool", kernel_shape=[2**20, 2**20], auto_pad="SAME_LOWER")


@edit_of("plain")
def padding_by_a_thousand_million(model: onnx.ModelProto) -> None:
    next(a for a in node(model, "Conv").attribute if a.name == "pads").ints[:] = [10**9] * 4


@edit_of()
def a_tile_bomb(model: onnx.ModelProto) -> None:
    tile = node(model, "Tile")
    tile.input[1] = constant(model, "repeats", [10**12])


@edit_of()
def a_tile_bomb_lit_by_lambda(model: onnx.ModelProto) -> None:
    steps = [("Mul", ["lambda", constant(model, "large", [1e10], np.float32)], {}), ("Cast", [], {"to": 7})]
    for index, (op, inputs, attributes) in enumerate(steps):
        made = helper.make_node(op, inputs or ["fuse0"], [f"fuse{index}"], **attributes)
        model.graph.node.insert(index, made)
    node(model, "Tile").input[1] = "fuse1"


@edit_of()
def a_chain_of_products_that_grow(model: onnx.ModelProto) -> None:
    """Every node is within bounds; together they would take 60 x 256 MB."""
    constant(model, "seed", np.ones((2**13, 1)), np.float32)
    constant(model, "row", np.ones((1, 2**13)), np.float32)
    names = [f"big{index}" for index in range(60)]
    model.graph.node.extend(helper.make_node("Mul", ["seed", "row"], [name]) for name in names)
    model.graph.node.append(helper.make_node("Max", names, ["biggest"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["biggest"], ["most"], keepdims=0))
    next(each for each in model.graph.node if "logits" in each.output).output[0] = "before"
    model.graph.node.append(helper.make_node("Add", ["before", "most"], ["logits"]))


@edit_of()
def a_norm_broader_than_its_convolution(model: onnx.ModelProto) -> None:
    """Folding one into the other would multiply their sizes."""
    convolution = node(model, "Conv")
    convolution.input[1] = constant(model, "thin", np.ones((1, 1, 1, 2**16)), np.float32)
    norm = next(each for each in model.graph.node if each.input and each.input[0] == convolution.output[0])
    norm.input[1:] = [constant(model, f"broad{i}", np.ones(2**16), np.float32) for i in range(4)]


FOUND["widths_by_the_ten_thousand"] = edited(
    set_property("widths", str([0.5 + index / 40_000 for index in range(10_000)] + [1.0])), "wide"
)


# What let out another error than a DeploytoolError.


@edit_of("wide")
def a_slice_that_leaves_nothing(model: onnx.ModelProto) -> None:
    """Looking for the layout of an empty weight."""
    sizes = tensor(model, "sizes7")
    sizes.CopyFrom(numpy_helper.from_array(np.full(tuple(sizes.dims), -(2**31), np.int64), sizes.name))


@edit_of()
def a_weight_with_a_dimension_too_few(model: onnx.ModelProto) -> None:
    weight = tensor(model, "conv1.weight")
    weight.dims[:] = [int(np.prod(weight.dims))]


@edit_of()
def a_tensor_of_strings(model: onnx.ModelProto) -> None:
    """Which numpy would repeat, and onnxruntime takes in no other way than from a file."""
    weight = tensor(model, "conv1.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), "ha", object), weight.name))


@edit_of()
def an_output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(model.graph.output[0])


@edit_of()
def an_operator_set_beside_the_one(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="x", version=1)


def with_bytes(old: bytes, new: bytes) -> Found:
    """Bytes that no writer of ONNX lets into a text."""
    assert len(old) == len(new)

    def file(sources: Sources) -> bytes:
        assert old in sources["conditional"]
        return sources["conditional"].replace(old, new)

    return file


FOUND["names_of_tensors_that_are_no_utf8"] = with_bytes(b"conv1.weight", b"conv1.\xffeight")
FOUND["operators_that_are_no_utf8"] = with_bytes(b"\x22\x04Relu", b"\x22\x04\xff\xfflu")
FOUND["the_name_of_the_graph_is_no_utf8"] = with_bytes(b"\x12\x05model", b"\x12\x05\xffodel")


# What was said in more than a line, or far too long.


FOUND |= {
    f"{key}_of_two_lines_{index}": edited(set_property(key, text))
    for key, texts in {
        "classes": ["\n\n3", "[0,\n1"],
        "conditioning": ["nothing\nelse", "x" * 100_000],
        "lambda": ["\n2", "2\r\n", "\u20281.5"],
        "lambda_threshold": ["-1\n"],
        "precision": ["\nint4"],
        "preprocessing": ["\n0.5", '{"mode":\n"X"}'],
        "quantization": ["\n\n[]"],
        "widths": ["\n2", "[0.5,\n2]", "[" + "1," * 20_000 + "1]"],
    }.items()
    for index, text in enumerate(texts)
}


# What onnxruntime or onnx refuse by themselves today, and must go on being refused.


@edit_of()
def a_cycle(model: onnx.ModelProto) -> None:
    first, last = model.graph.node[-2], model.graph.node[-1]
    first.input[0] = last.output[0]


@edit_of()
def a_name_made_twice(model: onnx.ModelProto) -> None:
    model.graph.node.add().CopyFrom(model.graph.node[-1])


@edit_of()
def a_tensor_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(tensor(model, "conv1.weight"))


@edit_of()
def weights_at_an_address_in_memory(model: onnx.ModelProto) -> None:
    """How onnxruntime marks its own tensors; read from a file, it would be anybody's memory."""
    weight = tensor(model, "conv1.weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "4096"), ("length", "1152")):
        weight.external_data.add(key=key, value=text)


def with_attribute(op: str, name: str, value: Any) -> Found:
    def edit(model: onnx.ModelProto) -> None:
        changed = node(model, op)
        kept = [attribute for attribute in changed.attribute if attribute.name != name]
        del changed.attribute[:]
        changed.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edited(edit)


def resized(scales: Any = None, sizes: Any = None, roi: Any = None, **attributes: Any) -> Found:
    """The first Resize of an explainer, changed; None leaves an input or attribute as it is."""

    def edit(model: onnx.ModelProto) -> None:
        changed = node(model, "Resize")
        kept = [each for each in changed.attribute if each.name not in attributes]
        del changed.attribute[:]
        changed.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])
        inputs = [changed.input[0], "", changed.input[2], ""]
        if scales is not None:
            inputs[2] = constant(model, "other.scales", scales, np.float32)
        if sizes is not None:
            inputs[2:] = "", constant(model, "other.sizes", sizes)
        if roi is not None:
            inputs[1] = constant(model, "other.roi", roi, np.float32)
        changed.input[:] = inputs

    return edited(edit, "explained")


@edit_of("explained")
def a_map_that_lambda_resizes(model: onnx.ModelProto) -> None:
    ones = constant(model, "ones", np.ones(4), np.float32)
    model.graph.node.insert(0, helper.make_node("Mul", ["lambda", ones], ["chosen.scales"]))
    node(model, "Resize").input[2] = "chosen.scales"


FOUND |= {
    "resized_to_nothing": resized([1, 1, 0, 0]),
    "resized_by_less_than_one": resized([1, 1, 0.5, 0.5]),
    "resized_by_a_minus": resized([1, 1, -2, -2]),
    "resized_by_nan": resized([1, 1, np.nan, 2]),
    "resized_without_end": resized([1, 1, 1e9, 1e9]),
    "resized_by_infinity": resized([1, 1, np.inf, 1]),
    "resized_a_little": resized([1, 1, 1.9999999, 2]),
    "resized_in_batch_and_channels": resized([2, 2, 2, 2]),
    "resized_in_two_axes_of_four": resized([2, 2]),
    "resized_to_sizes_without_end": resized(sizes=[2**40, 2**40], axes=[2, 3]),
    "resized_to_sizes_of_zero": resized(sizes=[0, 0], axes=[2, 3]),
    "resized_to_sizes_along_no_axes": resized(sizes=[4, 4], axes=[99, -99]),
    "resized_to_sizes_along_an_axis_twice": resized(sizes=[4, 4], axes=[3, 3]),
    "resized_to_sizes_of_a_batch": resized(sizes=[7, 16, 4, 4]),
    "resized_by_cubics": resized(mode="cubic"),
    "resized_with_antialiasing": resized(antialias=1),
    "resized_leaving_out_what_is_outside": resized(mode="cubic", exclude_outside=1),
    "resized_and_cropped": resized(
        roi=[0, 0, -1e9, -1e9, 1, 1, 1e9, 1e9], coordinate_transformation_mode="tf_crop_and_resize"
    ),
    "resized_by_a_mode_that_is_none": resized(coordinate_transformation_mode="no such mode"),
}


def nearest(k: Any = None, kind: type = np.int64, **attributes: Any) -> Found:
    """The first TopK of a file with libraries, changed; None leaves k as it is."""

    def edit(model: onnx.ModelProto) -> None:
        changed = node(model, "TopK")
        kept = [each for each in changed.attribute if each.name not in attributes]
        del changed.attribute[:]
        changed.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])
        if k is not None:
            changed.input[1] = constant(model, "other.k", k, kind)

    return edited(edit, "agreeing")


@edit_of("agreeing")
def a_number_of_nearest_that_lambda_chooses(model: onnx.ModelProto) -> None:
    model.graph.node.insert(
        0, helper.make_node("Reshape", ["lambda", constant(model, "one.axis", [1])], ["lambda.row"])
    )
    model.graph.node.insert(1, helper.make_node("Cast", ["lambda.row"], ["lambda.k"], to=TensorProto.INT64))
    node(model, "TopK").input[1] = "lambda.k"


@edit_of("agreeing")
def connections_of_fewer_nodes_than_there_are(model: onnx.ModelProto) -> None:
    places = next(each.output[1] for each in model.graph.node if each.op_type == "TopK")
    gather = next(each for each in model.graph.node if places in each.input)
    gather.input[0] = constant(model, "few", np.ones((2, 10)), np.float32)


FOUND |= {
    "none_of_the_nearest": nearest([0]),
    "less_than_none_of_the_nearest": nearest([-1]),
    "more_of_the_nearest_than_there_are": nearest([1000]),
    "the_nearest_without_end": nearest([2**40]),
    "the_nearest_by_a_list": nearest([3, 3]),
    "the_nearest_by_a_number": nearest(3),
    "the_nearest_by_a_fraction": nearest([3.0], np.float32),
    "the_nearest_images": nearest(axis=0),
    "the_farthest": nearest(largest=0),
    "the_nearest_in_no_order": nearest(sorted=2**40),
    "an_axis_of_the_nearest_that_is_not_there": nearest(axis=-(2**40)),
    **{
        f"library_of_two_lines_{index}": edited(set_property("library", text), "agreeing")
        for index, text in enumerate(["\n\n[]", "{}", "x" * 100_000, "[" * 5000, '{"name":\n"x"}'])
    },
}


FOUND |= {
    "strides_of_zero": with_attribute("Conv", "strides", [0, 0]),
    "strides_without_end": with_attribute("Conv", "strides", [2**40, 2**40]),
    "dilations_without_end": with_attribute("Conv", "dilations", [2**62, 2**62]),
    "no_groups": with_attribute("Conv", "group", 0),
    "more_groups_than_channels": with_attribute("Conv", "group", 2**31),
    "padding_by_less_than_nothing": with_attribute("Conv", "pads", [-(10**9)] * 4),
    "an_axis_that_is_not_there": with_attribute("Split", "axis", 99),
    "a_cast_to_no_type": with_attribute("Cast", "to", 1000),
    "a_cast_to_strings": with_attribute("Cast", "to", int(TensorProto.STRING)),
    "lambda_is_a_list": edited(lambda model: model.graph.input[1].type.tensor_type.shape.dim.add()),
    "an_operator_set_of_long_ago": edited(lambda model: setattr(model.opset_import[0], "version", 6)),
    "a_version_of_the_format_to_come": edited(lambda model: setattr(model, "ir_version", 2**62)),
}
