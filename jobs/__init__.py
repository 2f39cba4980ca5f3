"""Named jobs, and the nightly schedules that complement automation."""
