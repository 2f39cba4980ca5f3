"""Sensors: they manage partitions and report versions; automation decides what runs."""
