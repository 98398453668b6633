"""Clean and robust accuracy of runs and of ONNX files, and the checks that tell robustness from a weak attack.

| module | what |
| --- | --- |
| `settings` | the grid of lambdas, thresholds, widths |
| `accuracy` | rows of accuracies: attacks over settings |
| `adaptive` | reasoning labels: the rule of a run, the attacks that know it, what it makes of any |
| `honesty` | warnings: what a reader has to know before trusting the rows |
| `whole` | all of it for a run: rows, checks, saved adversarial examples |
| `files` | black-box attacks on ONNX files |
| `saved` | adversarial examples on disk, checked again |
"""

from deploytool.evaluation.accuracy import evaluate_model, image_batches
from deploytool.evaluation.settings import deployed, evaluation_settings
from deploytool.evaluation.whole import Evaluation, evaluate

__all__ = ["Evaluation", "deployed", "evaluate", "evaluate_model", "evaluation_settings", "image_batches"]
