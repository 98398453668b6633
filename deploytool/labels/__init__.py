"""Reasoning labels: which words go with each class, and where they come from (paper 1, section 3.4); no torch.

| module | what |
| --- | --- |
| `label_map` | the map class -> labels, and its binary vectors |
| `files` | label maps as YAML, written by this package or by a person |
| `relations` | the nine relations, and which of them read both ways |
| `subjects` | classes and the names that stand for them |
| `gathering` | the best labels of each class, in bounded memory |
| `edges` | statements of ConceptNet turned into labels |
| `lines` | lines of a plain or gzip file, streamed |
| `conceptnet` | labels from a dump of ConceptNet 5 |
| `conceptnet_api`, `fetching` | labels from ConceptNet's REST API, through a cache |
| `wordnet` | labels from the data files of WordNet |
"""
