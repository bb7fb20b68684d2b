"""Tasks of EleutherAI's lm-evaluation-harness on any model: `python -m dlm.harness run=DIR tasks=...`.

scorer     log-probabilities and continuations of text, by whatever likelihood the model has
adapter    the same as the harness asks for it
tasks      task by task: results beside the run, and rows of its measures
"""
