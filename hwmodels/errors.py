"""Every error that hwmodels raises on purpose; messages are one line: the value, what is allowed, what to do.

HwModelsError
├── WorkloadError    the network cannot be read, or its shapes are unknown
├── ProfileError     the technology profile is incomplete or not physical
├── MethodError      the method is unknown, or not as it is asked for
├── MeasureError     the network cannot be measured here, or what was measured cannot be used
├── SweepError       what is to be swept cannot be, or nothing swept is fast enough
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


class MeasureError(HwModelsError):
    """The network cannot be measured here, or what was measured cannot be used."""


class SweepError(HwModelsError):
    """What is to be swept cannot be, or nothing swept is fast enough."""


class FigureError(HwModelsError):
    """A figure cannot be drawn here."""
