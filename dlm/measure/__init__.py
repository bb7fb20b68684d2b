"""What a finished run has learnt, remembered and copied: measures of its checkpoints.

subject        one set of weights with its data; settings; what a measure returns
texts          what measures need of the data and no weights
likelihoods    calibration, accuracy, order variance, the train-report gap, membership
items, probes  choices between a true sequence and false ones
overlap        n-grams and longest common substrings
memorisation   what samples copy, what prefixes extract
run            the names of all measures; rows in a run's `measures.jsonl`
__main__       python -m dlm.measure
"""

from dlm.measure.run import MEASURES, Measure, measure_run, measured
from dlm.measure.subject import Measured, Settings, Subject

__all__ = ["MEASURES", "Measure", "Measured", "Settings", "Subject", "measure_run", "measured"]
