"""What an answer rests on: attribution maps, surrogates that draw them, and what they are worth.

| module | what |
| --- | --- |
| `agreement` | how well a student imitates its target, and what is left of an explained image |
| `attribution` | heat maps of any torch classifier, through captum: sliding patch, Grad-CAM |
| `comparison` | a surrogate explainer against its rivals: faithfulness, intensity, speed |
| `consistency` | what classes and reasoning labels accept and detect together, against the softmax |
| `controls` | maps that look at no network: noise, the middle of the image |
| `explainer` | a trained surrogate: its folder, its maps |
| `faithfulness` | insertion and deletion: does the answer hang on what a map marks |
| `fast` | a torch module as an onnxruntime session, for thousands of answers |
| `layers` | the layer that Grad-CAM reads, found by running the network |
| `lime`, `rise` | heat maps of any callable, by a local linear model and by random masks |
| `recipe` | the recipe of a surrogate explainer |
| `rivals` | all of these by name |
| `speed` | images per second of an explainer and its rivals, interleaved |
| `stability` | pairs of maps before and after a small change, and how they differ |
| `study` | stability of a run, over its settings |
| `target` | what a surrogate explains: runs, ONNX files, torchvision's models, torch modules |
"""
