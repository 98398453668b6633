"""Every error that deploytool raises on purpose.

    DeploytoolError
    ├── MissingExtraError    a feature needs packages that are not installed
    ├── RecipeError          the recipe, or an override of it, says something that is not allowed
    ├── DataError            a data set is absent, broken or of the wrong shape
    ├── LabelError           a label map, or what it is built from, cannot be used
    ├── RunError             a run directory cannot be used as asked
    │   └── CheckpointError  its checkpoint is damaged or belongs to another model
    ├── ArtefactError        a file is not a model that deploytool exported
    │   └── ParityError      an exported graph does not answer as the trained model does
    ├── InputError           an image, a lambda or another argument is outside what a model accepts
    └── CostError            the hardware report cannot be made

Messages are one line: the value received, what is allowed, what to do.
The command line catches the root alone, prints that line and exits with 1.
"""


class DeploytoolError(Exception):
    """Root of all errors that deploytool raises on purpose."""


class MissingExtraError(DeploytoolError):
    """A feature needs packages that are not installed; the message holds the pip command."""


class RecipeError(DeploytoolError):
    """The recipe, or an override of it, says something that is not allowed."""


class DataError(DeploytoolError):
    """A data set is absent, broken or of the wrong shape."""


class LabelError(DeploytoolError):
    """A label map, or what it is built from, cannot be used."""


class RunError(DeploytoolError):
    """A run directory cannot be used as asked."""


class CheckpointError(RunError):
    """A checkpoint is damaged or belongs to another model."""


class ArtefactError(DeploytoolError):
    """A file is not a model that deploytool exported."""


class ParityError(ArtefactError):
    """An exported graph does not answer as the trained model does."""


class InputError(DeploytoolError):
    """An image, a lambda or another argument is outside what a model accepts."""


class CostError(DeploytoolError):
    """The hardware report cannot be made."""
