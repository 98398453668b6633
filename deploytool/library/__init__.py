"""Library networks: what a network's hidden layers have seen, and whether they agree (paper 4).

| module | what |
| --- | --- |
| `recipe` | which layers, at which thresholds, stored how |
| `taps` | hidden layers of torch modules and ONNX files by name |
| `streams` | images through a network whose layers are watched, block by block |
| `patterns` | from a layer's activity to a pattern: sampled, modulated, stored in 4, 2 or 1 byte per value |
| `novelty` | eq. 1: which patterns are stored, block by block, as if one after the other |
| `search` | the stored patterns nearest to a new one |
| `networks` | eqs. 2, 3 and 5: what the stored patterns say of an image, and whether layers agree |
| `folder` | libraries on disk |
| `build`, `progress` | libraries of a network from its training images; where an interrupted build stands |
| `agreement` | how often a layer foretells its network's answer |
| `confusion` | eq. 4: which classes a layer mixes up |
| `calibration` | the threshold below which an image is doubtful |
| `scores`, `detector` | CPL and its rivals for any image; all of it combined |
| `detection` | attacked and foreign images told from clean ones |
| `adaptive` | the attack that knows the libraries |

It is a room of its own beside `explain`, which the design had it in: other than heat maps, libraries are built, stored
and deployed like models.

Reference: J. H. Lee, Library network, a possible path to explainable neural networks, 2019 ("paper 4").
"""
