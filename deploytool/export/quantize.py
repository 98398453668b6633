"""`export --quantize int8`: smaller weights in the file, and all it takes to run INT8 networks made from it.

A file with `lambda` or `width` as an input keeps its graph:

    before:  theta                                     float32 initializer of a convolution or linear layer
    after:   theta = DequantizeLinear(theta.int8, theta.scale)          one scale per output channel

so that eq. 4 and what follows read the same name, and stock onnxruntime runs the file: weights of 8 bits, activations
float32. Batch norms, FiLM and biases stay float32. 0 stays 0, so that masks survive; in a layer with a mask, a weight
that is not 0 becomes one step at least, since a weight of 0 would lose its noise. The metadata hold the ranges of all
activations (`deploytool.runtime.ranges`); with them `specialize` and `Session` write static INT8 networks.

A file that takes images alone has nothing to specialise: it becomes the static INT8 network itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession

from deploytool.attacks.registry import make_attack, recipe_base
from deploytool.attacks.run import attack_batches
from deploytool.data.catalogue import DatasetInfo
from deploytool.data.datasets import Images, load_dataset
from deploytool.errors import ParityError
from deploytool.evaluation.accuracy import image_batches
from deploytool.export.activations import calibrate, measure
from deploytool.models.conditional import ConditionalModel
from deploytool.models.setting import Setting
from deploytool.progress import progress_bar
from deploytool.recipe import OatMethod, Recipe
from deploytool.runtime.artefact import Artefact, artefact_of
from deploytool.runtime.graph import Graph, assemble
from deploytool.runtime.network import OwnSession, open_session
from deploytool.runtime.partial import specialized_graph
from deploytool.runtime.quantized import quantized_graph, with_pooled_means
from deploytool.runtime.ranges import PRECISION, QUANTIZATION
from deploytool.runtime.reasoning import Reasoning
from deploytool.runtime.rounding import rounded_weight, weight_scales
from deploytool.runtime.specialize import too_far_off
from deploytool.training.run import Run

Array = np.ndarray[Any, Any]
Answers = dict[str, Array]
Networks = Mapping[Setting, tuple[OwnSession, OwnSession]]

CALIBRATION_IMAGES, RANDOM_IMAGES = 256, 32
TEST_IMAGES, CHECKED_IMAGES = 500, 32
ATTACK = "pgd-7"
ALLOWED_LOSS = 0.005
ALLOWED_MOVE = 0.01  # of coverage
LAMBDAS = (0.0, 1.0)


@dataclass(frozen=True)
class Quantizer:
    """Turns a float32 file into an INT8 one, and measures what that costs.

    Attributes:
        model: the model that the file holds.
        recipe: its recipe.
        setting: width, conditioning and threshold of the file.
        narrow: further widths in the file.
        images: calibration images (n, C, H, W) float32 in [0, 1].
        test: images to measure accuracy on; none where the model is not trained.
    """

    model: ConditionalModel
    recipe: Recipe
    setting: Setting
    narrow: Sequence[float]
    images: Array
    test: Images | None

    def __call__(self, file: onnx.ModelProto) -> dict[str, Any]:
        """Quantise a file in place.

        Returns:
            `precision`, `size_ratio` (file / the same in float32), `calibration_images`, and `rows`; see
            `accuracy_rows`.

        Raises:
            ParityError: an INT8 network answers nothing like the float32 one.
        """
        before = file.ByteSize()
        name = Path(f"the int8 file of {self.recipe.name}")
        plain = artefact_of(name, file)
        if plain.metadata.fixed:
            _make_static(file, plain, self.images)
        else:
            store_int8(file, self.model.conditioned, set(self.model.masks))
            ranges = calibrate(artefact_of(name, file), self.images, self._lambdas())
            file.metadata_props.add(key=QUANTIZATION, value=ranges.to_json())
        quantized = artefact_of(name, file)
        networks = self._networks(plain, quantized)
        self._check_answers(networks, open_session(file.SerializeToString(), 1, str(name)))
        return {
            "precision": "int8",
            "size_ratio": round(file.ByteSize() / before, 6),
            "calibration_images": len(self.images),
            "rows": [] if self.test is None else self.accuracy_rows(networks, self.test, plain.metadata.reasoning),
        }

    def accuracy_rows(self, networks: Networks, test: Images, reasoning: Reasoning | None) -> list[dict[str, Any]]:
        """Accuracies of the float32 and INT8 network of each setting, both run by onnxruntime.

        The attack is PGD-7 with the recipe's radius and step on the float32 network, and both networks see the same
        images: an INT8 network has no gradient, so what it meets is an attack transferred from its float32 twin.

        Returns:
            Rows `{lambda, width, clean_accuracy, clean_accuracy_int8, robust_accuracy, robust_accuracy_int8, n}`;
            `lambda` is None where the model takes none. Of a file with reasoning labels also what `verdict_columns`
            finds on the images as they are.
        """
        attack = make_attack(ATTACK, recipe_base(self.recipe))
        rows = []
        with progress_bar("measuring int8", 2 * len(networks)) as bar:
            for setting, pair in networks.items():
                row: dict[str, Any] = {
                    "lambda": setting.lam if self.model.is_conditional else None,
                    "width": setting.width,
                }
                clean = [image for image, _ in image_batches(test)]
                with self.model.network(setting) as network:
                    parts = ((image, label, None) for image, label in image_batches(test))
                    attacked = [result.image for result in attack_batches(network, parts, attack, self.recipe.seed)]
                for kind, images in (("clean", clean), ("robust", attacked)):
                    answers = [_joined([_answers(session, image.numpy()) for image in images]) for session in pair]
                    for name, found in zip((f"{kind}_accuracy", f"{kind}_accuracy_int8"), answers, strict=True):
                        row[name] = float((found["logits"].argmax(1) == test.labels.numpy()).mean())
                    if reasoning is not None and kind == "clean":
                        row |= verdict_columns(reasoning, *answers)
                    bar.advance(f"lambda {setting.lam:g} width {setting.width:g}")
                rows.append({**row, "n": len(test)})
        return rows

    def _check_answers(self, networks: Networks, stored: InferenceSession) -> None:
        """Refuse a file whose answers, INT8 or as stored, are far off those in float32: that is no rounding."""
        taken = {value.name for value in stored.get_inputs()}
        for setting, (float32, int8) in networks.items():
            image = self.images[:CHECKED_IMAGES]
            knobs = {"lambda": setting.lam, "width": setting.width}
            fed = {name: np.array(value, np.float32) for name, value in knobs.items() if name in taken}
            want = _answers(float32, image)
            generic = dict(zip(want, stored.run(list(want), {"image": image, **fed}), strict=True))
            for answers in (_answers(int8, image), generic):
                off = too_far_off(answers, want, int8=True)
                if off is not None:
                    raise ParityError(
                        f"nothing was written: int8 moves {off.output} by {off.error:.2e} at lambda {setting.lam:g}, "
                        f"width {setting.width:g}, allowed {off.allowed:.2e}; try more calibration images, or leave "
                        "--quantize out"
                    )

    def _lambdas(self) -> list[float]:
        """S_lambda: what the recipe evaluates, and what OAT is trained on."""
        method = self.recipe.method
        return [*self.recipe.evaluate.lambdas, *(method.lambdas if isinstance(method, OatMethod) else [])]

    def _networks(self, plain: Artefact, quantized: Artefact) -> Networks:
        """The float32 and the INT8 network at both ends of lambda and each width."""
        settings = [
            replace(self.setting, lam=lam, width=width)
            for width in (*self.narrow, self.setting.width)
            for lam in (LAMBDAS if self.model.is_conditional else (0.0,))
        ]
        return {at: (self._network(plain, at), self._network(quantized, at)) for at in settings}

    def _network(self, artefact: Artefact, setting: Setting) -> OwnSession:
        lam = setting.lam if artefact.metadata.conditional else None
        return OwnSession(specialized_graph(artefact, lam, None, setting.width), 1, str(artefact.path))


def quantizer_of_run(run: Run, setting: Setting, narrow: Sequence[float], count: int | None) -> Quantizer:
    """A quantiser with so many of a run's training images, 256 where None, in an order that the recipe's seed decides.

    Raises:
        DataError: the data set cannot be loaded.
    """
    data = load_dataset(run.recipe.data)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(run.recipe.seed))
    images = data.train.batch(chosen[: count or CALIBRATION_IMAGES])[0].numpy()
    return Quantizer(run.model, run.recipe, setting, narrow, images, data.test.head(TEST_IMAGES))


def quantizer_of_untrained(
    model: ConditionalModel,
    recipe: Recipe,
    info: DatasetInfo,
    setting: Setting,
    narrow: Sequence[float],
    count: int | None,
) -> Quantizer:
    """A quantiser with so many uniform images, 32 where None."""
    images = np.random.default_rng(0).random((count or RANDOM_IMAGES, *info.shape), np.float32)
    return Quantizer(model, recipe, setting, narrow, images, None)


def store_int8(file: onnx.ModelProto, weights: Sequence[str], masked: set[str]) -> None:
    """Store weights as int8 with a scale per output channel, in place; what reads them finds them by their old names.

    Args:
        file: an exported model.
        weights: names of initializers; those that are not there, or have less than two axes, are left alone.
        masked: weights that a mask makes sparse: there, what is not 0 stays so.
    """
    graph = file.graph
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.name not in weights or len(tensor.dims) < 2:
            tensors.append(tensor)
            continue
        name, weight = tensor.name, numpy_helper.to_array(tensor)
        scales = weight_scales(weight)
        steps = rounded_weight(weight, scales)
        if name in masked:
            steps = np.where((steps == 0) & (weight != 0), np.sign(weight), steps).astype(np.int8)
        stored = {f"{name}.int8": steps, f"{name}.scale": scales}
        tensors.extend(numpy_helper.from_array(value, key) for key, value in stored.items())
        nodes.append(helper.make_node("DequantizeLinear", list(stored), [name], axis=0))
    rest = list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(tensors)
    graph.node.extend([*nodes, *rest])


def verdict_columns(reasoning: Reasoning, float32: Answers, int8: Answers) -> dict[str, float]:
    """What INT8 does to verdicts at the file's t_rsn.

    At t_rsn 1 one reason that rounding flips is a rejection, of an image whose class may well stay.

    Args:
        reasoning: what the file's reasons mean.
        float32, int8: `logits` (N, K) and `reasoning` (N, R) of the two networks on the same images.

    Returns:
        `coverage` and `coverage_int8`, the shares of images that are accepted, and `same_verdict`, the share for which
        both networks name the same class and accept it, or both reject it.
    """
    accepted, accepted_int8 = (reasoning.accepts(each["logits"], each["reasoning"]) for each in (float32, int8))
    named, named_int8 = (each["logits"].argmax(1) for each in (float32, int8))
    return {
        "coverage": float(accepted.mean()),
        "coverage_int8": float(accepted_int8.mean()),
        "same_verdict": float(((named == named_int8) & (accepted == accepted_int8)).mean()),
    }


def lost_accuracy(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """One line on the greatest loss of accuracy that INT8 brings, None where none is above 0.005."""
    losses = [
        (row[f"{kind}_accuracy"] - row[f"{kind}_accuracy_int8"], kind, row)
        for row in rows
        for kind in ("clean", "robust")
    ]
    above = [loss for loss in losses if loss[0] > ALLOWED_LOSS + 1e-9]  # differences of fractions are not exact
    if not above:
        return None
    loss, kind, row = max(above, key=lambda each: each[0])
    return (
        f"int8 loses {loss:.3f} of {kind} accuracy at {_at(row)} on {row['n']} images, more than {ALLOWED_LOSS:g}; "
        f"{len(above)} of {len(losses)} accuracies lose that much"
    )


def moved_coverage(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """One line on the greatest change of coverage that INT8 brings, None where none is above 0.01."""
    moves = [(row["coverage_int8"] - row["coverage"], row) for row in rows if "coverage" in row]
    above = [move for move in moves if abs(move[0]) > ALLOWED_MOVE + 1e-9]
    if not above:
        return None
    move, row = max(above, key=lambda each: abs(each[0]))
    return (
        f"int8 moves coverage by {move:+.3f} at {_at(row)} on {row['n']} images, more than {ALLOWED_MOVE:g}, and "
        f"leaves {row['same_verdict']:.3f} of the verdicts as they are; {len(above)} of {len(moves)} coverages move "
        "that much"
    )


def _at(row: Mapping[str, Any]) -> str:
    return f"width {row['width']:g}" if row["lambda"] is None else f"lambda {row['lambda']:g}, width {row['width']:g}"


def _answers(session: OwnSession, image: Array) -> Answers:
    return dict(zip(session.outputs, session.run({"image": image}), strict=True))


def _joined(parts: Sequence[Answers]) -> Answers:
    """The answers to batches as those to all their images."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _make_static(file: onnx.ModelProto, plain: Artefact, images: Array) -> None:
    """Replace a file that takes images alone by its INT8 network."""
    graph = with_pooled_means(_float_graph(plain))
    static = quantized_graph(graph, measure(graph, images, str(plain.path)))
    file.CopyFrom(assemble(static, {**plain.properties, PRECISION: "int8"}))


def _float_graph(plain: Artefact) -> Graph:
    return specialized_graph(plain, None, None, plain.metadata.widths[-1], precision="float32")
