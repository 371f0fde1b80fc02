"""The errors that a user of the command line can expect; each message says what is wrong and what to do."""


class VitganError(RuntimeError):
    """The base of this package's own errors."""


class CheckpointError(VitganError):
    """A run or checkpoint cannot be used."""


class TrainingError(VitganError):
    """Training cannot start or go on."""
