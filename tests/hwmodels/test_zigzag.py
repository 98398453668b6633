"""Multiply-accumulates and weights against zigzag-dse, a design-space explorer with a parser of its own.

    pip install zigzag-dse six    # six is needed and not declared

Its mapper takes minutes for a network; its parser, which this compares with, a second.
"""

from pathlib import Path

import onnx
import pytest

from hwmodels.workload import read_workload

parser = pytest.importorskip("zigzag.parser.onnx.onnx_model_parser", reason="zigzag-dse and six are not installed")
MAPPING = Path(parser.__file__).parents[2] / "inputs" / "mapping" / "default.yaml"


def zigzag_layers(file: Path) -> list[tuple[int, int]]:
    """(multiply-accumulates, weights) of each layer, as zigzag reads them; it wants shapes and a batch of one."""
    model = onnx.load(str(file))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    workload = parser.ONNXModelParser(onnx.shape_inference.infer_shapes(model), str(MAPPING)).run()
    found = []
    for node in workload.topological_sort():
        if hasattr(node, "total_mac_count"):
            sizes = {str(operand): size for operand, size in node.operand_size_elem.items()}
            found.append((node.total_mac_count, sizes["W"]))
    return found


@pytest.mark.parametrize("fixture", ["plain_file", "plain_mobilenet_file"])
def test_each_layer_has_the_multiplications_and_weights_that_zigzag_finds(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(fixture)
    ours = sorted((layer.macs, layer.weights) for layer in read_workload(file).layers)
    assert ours == sorted(zigzag_layers(file))


@pytest.fixture(scope="module")
def plain_mobilenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depthwise convolutions, at CIFAR's shape."""
    from deploytool.export.artefact import export_untrained
    from deploytool.recipe import load_recipe

    recipe = Path(__file__).parents[2] / "recipes" / "cifar10-resnet20-float.yaml"
    file = tmp_path_factory.mktemp("mobilenet") / "model.onnx"
    export_untrained(load_recipe(recipe, ["model.arch=mobilenet", "method={name: standard}"]), file)
    return file
