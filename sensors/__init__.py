"""Sensors.

- `registry`    keeps partitions equal to the registry and reports the versions of SAE files; starts no runs
- `automation`  runs the assets whose automation conditions are true
"""
