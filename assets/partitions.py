"""Partitions: one per model and one per SAE of the registry (`model/hookpoint/name`), kept equal to the registry.

They are dynamic partitions. Dagster accepts any string as their key, so the keys are checked here. They are added in
sorted order, which keeps the ranges of single-run backfills contiguous.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from latentgloss.config.entries import split_partition
from latentgloss.config.registry import Registry
from latentgloss.pipeline.stage import Grain

MODELS = dg.DynamicPartitionsDefinition(name="model")
SAES = dg.DynamicPartitionsDefinition(name="sae")
GRAINS: dict[Grain, dg.DynamicPartitionsDefinition] = {"model": MODELS, "sae": SAES}
"""The partitions of each grain."""


@dataclass(frozen=True)
class Change:
    """Partition keys to add to one grain and to remove from it."""

    grain: Grain
    add: list[str]
    remove: list[str]


def changes(instance: dg.DagsterInstance, registry: Registry) -> list[Change]:
    """The changes that make the instance's partitions equal to the registry's entries; none for a grain that is equal.

    While a file of a model or an SAE cannot be read, no key is removed, because that file may be the one that declares
    it (`held_back`).
    """
    wanted = _wanted(registry)
    for key in wanted["sae"]:
        split_partition(key)
    found = []
    for grain, keys in wanted.items():
        known = instance.get_dynamic_partitions(grain)
        add = [key for key in keys if key not in set(known)]
        remove = [] if registry.may_declare_more() else [key for key in known if key not in set(keys)]
        if add or remove:
            found.append(Change(grain, add, remove))
    return found


def held_back(instance: dg.DagsterInstance, registry: Registry) -> list[str]:
    """Keys that no readable file declares, and that stay because a file which cannot be read may declare them."""
    if not registry.may_declare_more():
        return []
    wanted = _wanted(registry)
    return [key for grain in wanted for key in instance.get_dynamic_partitions(grain) if key not in wanted[grain]]


def _wanted(registry: Registry) -> dict[Grain, Sequence[str]]:
    return {"model": sorted(registry.models), "sae": sorted(registry.saes)}


def apply(instance: dg.DagsterInstance, found: Sequence[Change]) -> None:
    """Applies changes to the instance directly. A sensor does not call this; it returns its changes to Dagster."""
    for change in found:
        if change.add:
            instance.add_dynamic_partitions(change.grain, change.add)
        for key in change.remove:
            instance.delete_dynamic_partition(change.grain, key)


def ranges(instance: dg.DagsterInstance, grain: Grain, keys: Sequence[str]) -> list[list[str]]:
    """`keys` in Dagster's order, divided into contiguous ranges, each of which one single-run backfill can cover."""
    order = {key: i for i, key in enumerate(instance.get_dynamic_partitions(grain))}
    found: list[list[str]] = []
    for key in sorted(keys, key=order.__getitem__):
        if found and order[key] == order[found[-1][-1]] + 1:
            found[-1].append(key)
        else:
            found.append([key])
    return found


def range_tags(keys: Sequence[str]) -> dict[str, str]:
    """Tags that make a run cover a contiguous range of partitions."""
    return {
        "dagster/asset_partition_range_start": keys[0],
        "dagster/asset_partition_range_end": keys[-1],
    }
