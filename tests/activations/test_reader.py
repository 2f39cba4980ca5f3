from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from windows_world import make_world

from latentgloss import schema
from latentgloss.activations import reader
from latentgloss.activations.reader import ActivationReader
from latentgloss.contexts.firing import Cells


def write_shards(folder: Path, seed: int, n_latents: int, row_group: int) -> tuple[list[Path], pl.DataFrame]:
    """Three shards, one of them empty, of many small row groups; and all they hold, by latent and position."""
    rng = np.random.default_rng(seed)
    frames, paths = [], []
    for number, n in enumerate((int(rng.integers(1, 400)), 0, int(rng.integers(1, 400)))):
        key = np.unique(
            rng.integers(0, n_latents, n) ** 2 // n_latents << 32 | rng.integers(0, 1000, n) + 1000 * number
        )
        frame = pl.DataFrame(
            {"latent": key >> 32, "position": key & 0xFFFF_FFFF, "activation": rng.random(len(key))}
        ).cast(dict(schema.ACTIVATIONS.schema))
        frames.append(frame)
        paths.append(folder / f"{number}.parquet")
        pq.write_table(frame.to_arrow(), paths[-1], row_group_size=row_group)
    return paths, pl.concat(frames).sort("latent", "position")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 50), st.integers(1, 500), st.data())
def test_blocks_are_read_whole_however_many_at_a_time(
    seed: int, n_latents: int, row_group: int, at_once: int, data: st.DataObject
) -> None:
    asked = np.array(sorted(data.draw(st.sets(st.integers(0, n_latents + 5), min_size=1))), dtype=np.uint32)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(asked) - 1, 1)), max_size=4)))
    blocks = [block for block in np.split(asked, cuts) if len(block)]
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        paths, everything = write_shards(Path(name), seed, n_latents, row_group)
        patch.setattr(reader, "AT_ONCE", at_once)
        found = list(ActivationReader(paths).sweep(blocks))
    assert [index for index, _ in found] == list(range(len(blocks)))
    for block, (_, frame) in zip(blocks, found, strict=True):
        expected = everything.filter(pl.col("latent").is_between(int(block[0]), int(block[-1])))
        assert frame.sort("latent", maintain_order=True).equals(expected)  # positions ascend without being sorted


def test_the_footers_tell_about_how_many_pairs_there_are(tmp_path: Path) -> None:
    paths, everything = write_shards(tmp_path, 0, 50, 7)
    below = ActivationReader(paths).below(np.arange(52))
    assert below[0] == 0
    assert below[51] == everything.height
    exact = np.array([(everything["latent"] < latent).sum() for latent in range(52)])
    assert np.abs(below - exact).max() <= 3 * 7  # rows of a row group are not spread evenly over its latents


def test_only_the_row_groups_of_the_latents_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, everything = write_shards(tmp_path, 1, 50, 7)
    read: list[int] = []
    whole = pq.ParquetFile.read_row_groups

    def counted(self: pq.ParquetFile, groups: list[int], **options: object) -> object:
        table = whole(self, groups, **options)
        read.append(table.num_rows)
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    (frame,) = ActivationReader(paths).read([(10, 12)])
    assert frame.height == everything.filter(pl.col("latent").is_between(10, 11)).height > 0
    assert sum(read) <= frame.height + 4 * 7


def test_cells_do_not_depend_on_the_order_of_pairs() -> None:
    world = make_world(3)
    latents = np.array([0, 2, 5, 13], dtype=np.uint32)
    shuffled = world.pairs.sample(fraction=1, shuffle=True, seed=1)
    one, other = (Cells.of(latents, frame, world.masked, world.windows) for frame in (world.pairs, shuffled))
    for name in ("row", "window", "maximum", "document", "first", "count", "position", "activation", "unmasked"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
