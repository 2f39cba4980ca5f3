"""What all stages share: declarations, recipes, runs, and the removal of versions that are no longer used.

- `stage`       the class `Stage`: name, grain, inputs, settings, version and tables
- `graph`       all stages, each declared once
- `recipe`      what decides a result, and how two recipes differ
- `stage_run`   one partition of one stage while it is computed
- `failures`    turns exceptions into errors that fail a single partition
- `accounting`  the stage, partition and run that requests to language models are charged to
- `processes`   runs stages in several worker processes
- `gc`          finds and removes versions that nothing refers to and damaged versions
"""
