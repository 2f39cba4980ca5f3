"""Named jobs, and the nightly schedules that complement automation.

- `jobs`     one job for each group of stages that is run together
- `refresh`  the nightly schedules
"""
