"""What every stage shares: its declaration, its recipe, one run of it, and clearing up.

- `stage`       what a stage is
- `graph`       every stage, declared once
- `recipe`      what decides a result, and how two recipes differ
- `stage_run`   one partition of one stage while it is computed
- `failures`    exceptions become a partition's failure
- `accounting`  on whose account language models are asked
- `processes`   computing in several processes
- `gc`          versions that can go
"""
