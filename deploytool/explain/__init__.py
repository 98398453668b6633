"""What an answer rests on: attribution maps, and how stable they are.

| module | what |
| --- | --- |
| `attribution` | heat maps of any torch classifier, through captum: sliding patch, Grad-CAM |
| `consistency` | what classes and reasoning labels accept and detect together, against the softmax |
| `faithfulness` | insertion and deletion: does the answer hang on what a map marks |
| `layers` | the layer that Grad-CAM reads, found by running the network |
| `stability` | pairs of maps before and after a small change, and how they differ |
| `study` | all of it for a run, over its settings |
"""
