"""A study from plan to report: many runs, each a process of its own.

command.py    what the command line may say, and which files of a study it means
scale.py      experiments/<study>/<scale>.yaml, read and checked (checks.py)
compose.py    the configurations of many similar runs
cost.py       what a run takes, without running it: tokens, FLOPs, disk
calibrate.py  ... and seconds
plan.py       the product of arms and cells: jobs, and plan.json; table.py prints it
corpora.py    data that is large enough, and stays what it was
launch.py     many processes on this machine; slurm.py, many jobs on a cluster
evaluate.py   measures of finished runs; decoding.py, the decoding of tasks
stages.py     data plan tune train evaluate fit report
"""
