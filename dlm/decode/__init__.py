"""How well a trained model answers the puzzles of its task, decoded in many ways.

settings   what the lists of a command line come to, without what contradicts itself
rows       one setting on the puzzles of a split, as the row of a table
run        the checkpoints of a run, and the rows that it has
traces     boards and how they were filled

Nothing here knows which task it is: `TaskSource.judge` says what is right.
"""

from dlm.decode.rows import Outcome, decode, summary
from dlm.decode.run import Block, Decoder
from dlm.decode.settings import Product, Setting, settings

__all__ = ["Block", "Decoder", "Outcome", "Product", "Setting", "decode", "settings", "summary"]
