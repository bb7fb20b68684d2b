"""The one exception meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake its reader can mend: one line that says what is wrong, and where."""
