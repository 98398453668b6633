"""ONNX files under black-box attack: ours at a setting, and any file with one image input."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deploytool.attacks.pgd import Pgd
from deploytool.attacks.run import run_attack
from deploytool.attacks.session_network import foreign_network, session_network
from deploytool.attacks.square import Square
from deploytool.errors import ArtefactError, InputError
from deploytool.models.setting import Setting
from deploytool.runtime.session import Session

SQUARE = Square(0.15, queries=60)


def test_a_file_of_ours_falls_like_its_network(trained_run, trained_interpolate_file, digits) -> None:
    image, label = digits
    session = Session(trained_interpolate_file, threads=1, background=False)
    setting = Setting(0.5, conditioning="interpolate")
    with trained_run.model.network(setting) as network:
        torch.testing.assert_close(session_network(session, 0.5)(image), network(image), atol=1e-4, rtol=1e-4)
        expected = run_attack(network, image, label, SQUARE)
    found = run_attack(session_network(session, 0.5), image, label, SQUARE)
    assert found.robust_accuracy() == pytest.approx(expected.robust_accuracy(), abs=0.01)
    assert found.robust_accuracy() < 0.9


def test_settings_are_checked_before_any_attack(trained_interpolate_file, plain_file) -> None:
    conditional, plain = (Session(file, threads=1, background=False) for file in (trained_interpolate_file, plain_file))
    with pytest.raises(InputError, match="lambda"):
        session_network(conditional)
    with pytest.raises(InputError, match="lambda"):
        session_network(conditional, 1.5)
    with pytest.raises(InputError, match="lambda"):
        session_network(plain, 0.5)
    with pytest.raises(InputError, match="width"):
        session_network(plain, width=0.3)


def test_gradients_of_a_file_are_refused_with_advice(plain_file, digits) -> None:
    with pytest.raises(InputError, match="black-box attack, such as square"):
        run_attack(foreign_network(plain_file, 1), digits[0][:8], digits[1][:8], Pgd(0.1, 0.1, 1))


def test_any_file_with_one_image_input_can_be_attacked(plain_file, plain_network, digits) -> None:
    image, label = digits
    network = foreign_network(plain_file, threads=1)
    torch.testing.assert_close(network(image), plain_network(image), atol=1e-4, rtol=1e-4)
    found = run_attack(network, image, label, SQUARE)
    assert found.robust_accuracy() == pytest.approx(
        run_attack(plain_network, image, label, SQUARE).robust_accuracy(), abs=0.01
    )


def classifier(
    path: Path, shape: list[int | str], kind: int = TensorProto.FLOAT, inputs: int = 1, out: str = "y"
) -> Path:
    """A foreign file: the mean of each channel."""
    values = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i in range(inputs)]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x0"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [out]),
    ]
    result = helper.make_tensor_value_info(out, kind, [shape[0], shape[1] if len(shape) > 1 else 1])
    graph = helper.make_graph(nodes, "g", values, [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("count", [1, 4, "n"])
def test_a_fixed_batch_is_filled_up(tmp_path, count) -> None:
    network = foreign_network(classifier(tmp_path / "m.onnx", [count, 3, 5, 6]), threads=1)
    image = torch.rand(7, 3, 5, 6)
    torch.testing.assert_close(network(image), image.mean((2, 3)))
    with pytest.raises(InputError, match=r"takes \(N, C, H, W\) with \(3, 5, 6\)"):
        network(image[:, :2])


def test_the_logits_are_preferred_among_outputs(tmp_path) -> None:
    path = classifier(tmp_path / "m.onnx", ["n", 3, 2, 2], out="logits")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Neg", ["logits"], ["first"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("first", TensorProto.FLOAT, ["n", 3]))
    onnx.save(model, path)
    image = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(foreign_network(path, 1)(image), image.mean((2, 3)))


def test_other_files_are_refused_in_one_line(tmp_path, trained_interpolate_file) -> None:
    with pytest.raises(ArtefactError, match="cannot be read"):
        foreign_network(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ArtefactError, match="no ONNX model"):
        foreign_network(tmp_path / "text.onnx")
    with pytest.raises(ArtefactError, match="has the inputs image, lambda; one image input.*use session_network"):
        foreign_network(trained_interpolate_file)
    with pytest.raises(ArtefactError, match="has the inputs x0, x1"):
        foreign_network(classifier(tmp_path / "two.onnx", ["n", 3, 4, 4], inputs=2))
    with pytest.raises(ArtefactError, match="x0 is no float32 image"):
        foreign_network(classifier(tmp_path / "double.onnx", ["n", 3, 4, 4], TensorProto.DOUBLE))
    with pytest.raises(ArtefactError, match="x0 is no float32 image"):
        foreign_network(classifier(tmp_path / "flat.onnx", ["n", 3]))
    model = onnx.load(classifier(tmp_path / "odd.onnx", ["n", 3, 4, 4]))
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ArtefactError, match="damaged graph") as caught:
        foreign_network(tmp_path / "odd.onnx")
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_no_matrix_of_numbers_is_refused(tmp_path) -> None:
    path = classifier(tmp_path / "m.onnx", ["n", 3, 4, 4])
    model = onnx.load(path)
    model.graph.node[1].CopyFrom(helper.make_node("Cast", ["pooled"], ["y"], to=TensorProto.DOUBLE))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["n", 3, 1, 1]))
    onnx.save(model, path)
    with pytest.raises(ArtefactError, match=r"output y is not \(N, K\) float32"):
        foreign_network(path, 1)(torch.zeros(2, 3, 4, 4))
