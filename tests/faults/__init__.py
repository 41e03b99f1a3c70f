"""The fault suite: real processes under load while faults are injected, and a checker over the history of all of it.

    python -m tests.faults                  the per-commit size: every combination, then the mutants
    python -m tests.faults --long           a million jobs and 2,000 faults, in parts that can be resumed

`load` submits, `nemesis` breaks, `triggers` record every change of a job's row, `checker` judges what came of it.
"""
