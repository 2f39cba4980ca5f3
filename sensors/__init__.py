"""Sensors.

- `registry`    keeps partitions equal to the registry and reports the versions of SAE files
- `configuration`  fails while a registry file cannot be used or the settings need a reload
- `automation`  runs the assets whose automation conditions are true
- `retries`     asks again for what a failed or cancelled run has left
- `lost_runs`   ends runs whose process is gone
"""
