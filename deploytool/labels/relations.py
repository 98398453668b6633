"""The nine relations that reasoning labels may stand in to their class, and which of them read both ways."""

RELATIONS = (
    "IsA",
    "PartOf",
    "HasA",
    "UsedFor",
    "CapableOf",
    "AtLocation",
    "Causes",
    "HasProperty",
    "RelatedTo",
)
"""In the order of paper 1, section 3.4. "class RELATION label" is true of the class: "panda IsA animal"."""

BACKWARDS = {"PartOf": "HasA", "HasA": "PartOf", "AtLocation": "HasA", "RelatedTo": "RelatedTo"}
"""Relation of a statement "label RELATION class" -> the relation that then holds of "class ... label".

"wheel PartOf car" says "car HasA wheel", "car HasA wheel" says "wheel PartOf car", and RelatedTo is symmetric. What is
found at a class (AtLocation: "something you find on a bird is feathers") is read as something that it has, as
ConceptNet's own list of relations says that some of these "would be considered meronyms in WordNet".
The other five are read forwards only, as their converse is none of the nine and is not true of each member of the
class: a sedan is a car, but not every car is a sedan (IsA); what is used for (UsedFor), able to do (CapableOf), the
cause of (Causes) or described as (HasProperty) a thing is no property of that thing.
"""
