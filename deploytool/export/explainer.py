"""`explain export`: a surrogate explainer as a file of its own, beside a classifier that is no run.

Its `logits` are the student's, which imitates the target, and its `saliency` explains the target. The method that the
file names is `surrogate`.
"""

import os
from pathlib import Path
from typing import Any

import onnx

from deploytool.atomic import atomic_path
from deploytool.explain.explainer import Explainer, surrogate_setting
from deploytool.export.artefact import accept_parity, common_metadata, parity_dict, parity_images
from deploytool.export.heads import LOGITS
from deploytool.export.parity import check_parity
from deploytool.export.saliency import explainer_note, surrogate_graph
from deploytool.models.setting import Setting
from deploytool.runtime.saliency import SALIENCY

METHOD = "surrogate"


def export_explainer(
    explainer: Explainer, file: str | os.PathLike[str] | None = None, target: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Write an explainer as an ONNX file with the outputs `logits` (the student's) and `saliency`, and check it.

    It takes `lambda` where the explainer has two sets of batch norms.

    Args:
        explainer: a trained one.
        file: where to write; EXPLAINER/model.onnx where None.
        target: what it explains, where that is no longer under the name that it was trained by. Only an explainer with
            two sets of batch norms needs it: it says how lambda chooses among them.

    Returns:
        `file`, `size_mb` (10^6 bytes), `parity: {max_abs_error, cases, outputs}`.

    Raises:
        ParityError: a logit or a value of a map is off by more than 1e-3; nothing is left behind.
        RunError: the target is not there, or not the one that the explainer was trained on.
    """
    setting = Setting(noise="none")
    if explainer.model.is_conditional:
        setting = surrogate_setting(explainer.open_target(target), None)
    info, recipe = explainer.info, explainer.recipe
    graph = surrogate_graph(explainer, setting, (LOGITS, SALIENCY))
    properties = common_metadata(explainer.model, info, setting, recipe.name, recipe.digest())
    properties |= {"deploytool.arch": recipe.student.arch, "deploytool.method": METHOD, "deploytool.trained": "true"}
    onnx.helper.set_model_props(graph, properties | explainer_note(explainer).to_properties())
    path = Path(explainer.path / "model.onnx" if file is None else file)
    with atomic_path(path) as aside:
        aside.write_bytes(graph.SerializeToString())
        parity = check_parity(aside, explainer.model, setting, parity_images(recipe.data, info))
        accept_parity(path, parity)
        onnx.checker.check_model(str(aside), full_check=True)
    return {"file": str(path), "size_mb": round(path.stat().st_size / 1e6, 6), "parity": parity_dict(parity)}
