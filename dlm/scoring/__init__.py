"""Scoring a finished run: in rounds of draws, until precise, resumable, on any number of processes.

ledger    the draws of one likelihood of one checkpoint, in a file that grows window by window
ranks     several processes that share the windows
scorer    fills ledgers and makes estimates of them
rows      an estimate as the row of a record, and as a line of text
"""

from dlm.scoring.ledger import Ledger, content_hash
from dlm.scoring.ranks import Ranks, joined
from dlm.scoring.scorer import Estimate, Scorer

__all__ = ["Estimate", "Ledger", "Ranks", "Scorer", "content_hash", "joined"]
