"""The mask of a mask predictor."""

from dlm.process import Process


def mask_id(process: Process) -> int:
    """The mask of a process whose network predicts hidden tokens.

    Raises:
        TypeError: for a process that does not mask, which has no conditionals of hidden tokens.
    """
    if process.mask_id is None:
        raise TypeError(f"{type(process).__name__} does not mask: it has no conditionals of hidden tokens")
    return process.mask_id
