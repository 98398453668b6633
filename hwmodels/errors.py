"""Every error that hwmodels raises on purpose; messages are one line: the value, what is allowed, what to do.

HwModelsError
├── WorkloadError    the network cannot be read, or its shapes are unknown
├── ProfileError     the technology profile is incomplete or not physical
├── MethodError      the method is unknown, or not as it is asked for
└── FigureError      a figure cannot be drawn here
"""


class HwModelsError(Exception):
    """Root of all errors that hwmodels raises on purpose."""


class WorkloadError(HwModelsError):
    """The network cannot be read, or its shapes are unknown."""


class ProfileError(HwModelsError):
    """The technology profile is incomplete or not physical."""


class MethodError(HwModelsError):
    """The method is unknown, or not as it is asked for."""


class FigureError(HwModelsError):
    """A figure cannot be drawn here."""
