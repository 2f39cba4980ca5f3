"""`make demo`: explain and score the latents of every SAE in the registry, then print what came out.

Runs the very assets of the Dagster project, in this process and in as few runs as the grains allow, so that a model
is loaded once and every record is in the Dagster UI. What is fresh computes nothing.

With `--full`: the settings in `demo/full.toml`, and the search index, for which every explanation is embedded.
LATENTGLOSS_CONFIG names other settings.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FULL = "--full" in sys.argv[1:]
os.environ.setdefault("LATENTGLOSS_CONFIG", str(ROOT / ("demo/full.toml" if FULL else "latentgloss.toml")))
os.environ.setdefault("DAGSTER_HOME", str(ROOT / "data" / "dagster"))
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from latentgloss.machine.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()  # before any thread has an arena of its own

import polars as pl  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.progress import Progress as Bars  # noqa: E402
from rich.table import Column, Table  # noqa: E402

from latentgloss import schema  # noqa: E402
from latentgloss.config.entries import BASELINES  # noqa: E402
from latentgloss.errors import LatentglossError  # noqa: E402
from latentgloss.pipeline.stage import Stage  # noqa: E402
from latentgloss.workspace import State, Workspace  # noqa: E402

if TYPE_CHECKING:
    import dagster as dg

    from resources.progress import Advance, Progress

_TERMINAL = os.fdopen(os.dup(sys.stdout.fileno()), "w") if sys.stdout.isatty() else None
"""The terminal itself: while a step runs, Dagster sends what is written to standard output to a file."""

console = Console(file=_TERMINAL) if _TERMINAL else Console(width=190)
SHOWN_METRIC = "balanced_accuracy"
GAIN_METRIC = "auroc"
BASELINE, NULL = "token_table", "null:"
"""Balanced accuracy over 100 + 100 windows moves in steps of .005: too coarse for a difference. Shown, too, where a
scorer has no balanced accuracy."""


def main() -> int:
    began = time.monotonic()
    try:
        workspace = Workspace.open()
        for path, error in workspace.registry.problems.items():
            console.print(f"left out: {path.name}: {error}", style="red", markup=False, highlight=False)
        stages = _stages()
        states = _states(workspace, stages)
        with _instance() as instance:
            if all(s.state == "fresh" for s in states) and _recorded(instance, workspace, stages):
                console.print(f"Everything is fresh: nothing to compute ({time.monotonic() - began:.1f} s).\n")
            else:
                _announce(states)
                _materialise(instance, workspace, stages)
                console.print(f"Took {time.monotonic() - began:.0f} s.\n", highlight=False)
                workspace = Workspace.open()
                states = _states(workspace, stages)
    except LatentglossError as e:
        console.print(str(e), style="red", markup=False, highlight=False)
        return 1
    _print_report(workspace)
    _print_next(workspace)
    return _print_failures(workspace, states)


def _stages() -> dict[str, list[Stage]]:
    """What is run: stages by job."""
    from jobs.jobs import SEARCH, STAGES_OF_JOB

    return {job: stages for job, stages in STAGES_OF_JOB.items() if FULL or job not in SEARCH}


def _states(workspace: Workspace, stages: dict[str, list[Stage]]) -> list[State]:
    names = {stage.name for together in stages.values() for stage in together}
    return [state for state in workspace.states() if state.asset in names]


def _instance() -> "dg.DagsterInstance":
    import dagster as dg

    home = Path(os.environ["DAGSTER_HOME"])
    if not (home / "dagster.yaml").is_file():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "dagster.yaml", home)
    return dg.DagsterInstance.get()


def _recorded(instance: "dg.DagsterInstance", workspace: Workspace, stages: dict[str, list[Stage]]) -> bool:
    """True if Dagster knows every partition, and has a record of each stage for it."""
    import dagster as dg

    from assets.partitions import changes

    return not changes(instance, workspace.registry) and all(
        set(workspace.partitions(stage)) <= instance.get_materialized_partitions(dg.AssetKey(stage.name))
        for together in stages.values()
        for stage in together
    )


def _announce(states: Sequence[State]) -> None:
    todo = sum(s.state != "fresh" for s in states)
    console.print(f"{todo} of {len(states)} partitions to bring up to date, {len(states) - todo} are fresh.")


def _materialise(instance: "dg.DagsterInstance", workspace: Workspace, jobs: dict[str, list[Stage]]) -> None:
    """All stages over all partitions: one run per grain, and one more for each stage in which something failed."""
    import dagster as dg

    from assets.partitions import apply, changes, range_tags, ranges
    from definitions import defs
    from sensors.registry import versions

    apply(instance, changes(instance, workspace.registry))
    for event in versions(workspace, {})[0]:
        instance.report_runless_asset_event(event)
    with _bars() as bars:
        resources = {**(defs.resources or {}), "progress": _terminal_progress(bars)}
        here = dg.Definitions(assets=defs.assets, jobs=defs.jobs, resources=resources, executor=defs.executor)
        for name, stages in jobs.items():
            for together in ranges(instance, stages[0].grain, workspace.partitions(stages[0])):
                remaining = list(stages)
                while remaining:
                    result = here.resolve_job_def(name).execute_in_process(
                        instance=instance,
                        asset_selection=[dg.AssetKey(s.name) for s in remaining],
                        tags={**range_tags(together), "latentgloss/started-by": "make demo"},
                        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                        raise_on_error=False,
                    )
                    _print_stages(result, remaining)
                    remaining = _after_failure(result, remaining)


def _after_failure(result: "dg.ExecuteInProcessResult", stages: list[Stage]) -> list[Stage]:
    """What a failed step kept from running: the SAEs that did not fail go on."""
    from assets.stage_asset import STEP_OF

    broken = {e.step_key for e in result.all_events if e.is_step_failure}
    failed = [i for i, s in enumerate(stages) if STEP_OF[s.name] in broken]
    if result.success:
        return []
    if not failed:
        raise SystemExit(f"the run {result.run_id} did not start; see it in the Dagster UI (`make ui`)")
    together = [i for i in failed if STEP_OF[stages[i].name] == STEP_OF[stages[failed[0]].name]]
    return stages[together[-1] + 1 :]


def _print_stages(result: "dg.ExecuteInProcessResult", stages: Sequence[Stage]) -> None:
    """A line per stage; those that share a step took its time together."""
    import dagster as dg

    from assets.stage_asset import STEP_OF

    for step, of_step in groupby(stages, key=lambda stage: STEP_OF[stage.name]):
        names = [stage.name for stage in of_step]
        events = [e for e in result.all_events if e.step_key == step]
        seconds = [e.step_success_data.duration_ms / 1000 for e in events if e.is_step_success]
        made = [e for e in events if e.is_step_materialization]
        for name in names if seconds else []:
            status = [e.materialization.metadata["status"].value for e in made if e.asset_key == dg.AssetKey(name)]
            computed = status.count("computed")
            took = f"  {seconds[0]:>7.1f} s" if name == names[-1] else ""
            line = f"  {name:<18} {computed:>3} computed, {len(status) - computed:>3} reused{took}"
            console.print(f"{line} together" if took and names[1:] else line, highlight=False)
        for event in events:
            if event.is_step_failure and event.step_failure_data.user_failure_data is None:
                # Not a partition that failed, which the store knows of: the stage itself could not run.
                error = event.step_failure_data.error
                while error is not None and error.cause is not None:
                    error = error.cause
                what = error.message.strip() if error else "failed"
                console.print(f"  {', '.join(names)}: {what}", style="red", markup=False)


# -- progress ----------------------------------------------------------------------------------------------------


def _terminal_progress(bars: Bars) -> "Progress":
    """Bars on a terminal, lines elsewhere; both instead of lines in Dagster's log."""
    from resources.progress import Lines, Progress

    class TerminalProgress(Progress):
        def start(self, log: Any) -> "Callable[[str], Advance]":
            if console.is_terminal:
                return lambda label: _bar(bars, label)
            return lambda label: Lines(label, lambda line: print(line, flush=True))

    return TerminalProgress()


def _bars() -> Bars:
    # Where a line is too long the label gives way, numbers do not.
    label = TextColumn("  {task.description}", table_column=Column(ratio=1, no_wrap=True))
    columns = (label, BarColumn(10), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    return Bars(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal)


def _bar(bars: Bars, label: str) -> "Advance":
    from resources.progress import Rate

    task: TaskID | None = None
    per_second = Rate()

    def advance(done: int, total: int | None, unit: str) -> None:
        nonlocal task
        if task is None:
            task = bars.add_task(label, total=total, rate="")
        found = per_second(done, unit)
        for other in bars.task_ids:  # one at a time: the one that moves
            bars.update(other, visible=False)
        rate = f"{found:,.0f} {unit}/s" if time.monotonic() - per_second.began > 1 else unit
        bars.update(task, completed=done, total=total, rate=rate, visible=total is None or done < total)

    return advance


# -- what came out -----------------------------------------------------------------------------------------------


def _print_report(workspace: Workspace) -> None:
    """A table per SAE, trained ones and baselines: a row per scorer, kind of negatives and explainer."""
    reports = [workspace.store.current("score_report", model) for model in sorted(workspace.registry.models)]
    frames = [r.read(schema.REPORT) for r in reports if r is not None]
    both = pl.concat(frames) if frames else schema.REPORT.empty()
    if not both.height:
        console.print("There is no report yet.")
        return
    order = list(workspace.settings.explanations.explainers)
    shown = [e for e in order if e != BASELINE and not e.startswith(NULL)]
    # What a judge cannot judge anywhere is said once, not in a row of every table.
    key = ("scorer", "judge", "embedder", "explainer")
    never = set(both.group_by(key).agg(pl.col("n_scored").sum()).filter(n_scored=0).select(key).iter_rows())
    for (partition,), of_sae in both.group_by("partition", maintain_order=True):
        first = of_sae.row(0, named=True)
        counts = f"{first['n_eligible']:,} of {first['n_latents']:,} latents eligible, {first['n_alive']:,} alive"
        table = Table(title=f"{partition}{_kind(workspace, str(partition))}: {counts}", title_justify="left")
        for head, width in COLUMNS:
            table.add_column(head, justify="left" if head in WORDS else "right", min_width=width, overflow="fold")
        for scorer, rows, gains in _arms(of_sae):
            by = {row["explainer"]: row for row in rows.iter_rows(named=True)}
            gain = {row["explainer"]: row for row in gains.iter_rows(named=True)}
            for explainer in (e for e in shown if e in by):
                row = by[explainer]
                if tuple(row[name] for name in key) in never:
                    continue
                table.add_row(
                    scorer,
                    row["negatives"],
                    explainer,
                    f"{row['n_scored']:,}" + ("" if row["n_asked"] == row["n_eligible"] else f" of {row['n_asked']:,}"),
                    "" if row["n_judged"] is None else f"{row['n_judged']:.0f}",
                    _short(row["coverage"]),
                    _interval(row, "median"),
                    _short(row["corrected"]),
                    _interval(row, "specificity"),
                    _interval(by.get(f"{NULL}{explainer}"), "median"),
                    _interval(by.get(BASELINE), "median"),
                    _interval(gain.get(explainer), "gain"),
                )
        console.print(table)
    console.print(
        "Score: balanced accuracy unless AUROC is named. Medians over scored latents, 95 % intervals over latents.\n"
        "n: contexts judged per latent; coverage: the share of them that could be counted. Corrected: 0 within\n"
        "reach of knowing nothing, 1 perfect. Null: other latents' texts; specificity: what is gained over them.\n"
        f"Gain over `{BASELINE}`: median paired difference over all eligible latents. Population: all other contexts,\n"
        "each kind by its share.",
        highlight=False,
    )
    for scorer, judge, _, explainer in sorted(n for n in never if n[3] in shown):
        console.print(f"`{explainer}` is not scored in {scorer}: {judge} has no answer to it.", highlight=False)
    _print_sentences(workspace)


def _print_sentences(workspace: Workspace) -> None:
    """What a language model said of one latent of each SAE."""
    if workspace.settings.explanations.model is None:
        return
    console.print(f"\nWhat {workspace.settings.explanations.model} says of one latent of each SAE:", highlight=False)
    for partition in sorted(workspace.registry.saes):
        version = workspace.store.current("explanations", partition)
        if version is not None:
            asked = version.scan(schema.EXPLANATIONS).filter(pl.col("reply").is_not_null()).head(1).collect()
            for row in asked.iter_rows(named=True):
                said = f"“{row['explanation']}”" if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
                console.print(f"  {partition} {row['latent']}: {said}", highlight=False, markup=False)
    console.print("")


COLUMNS = (
    ("scorer", 9),
    ("negatives", 9),
    ("explainer", 9),
    ("scored", 6),
    ("n", 3),
    ("coverage", 8),
    ("score", 17),
    ("corrected", 9),
    ("specificity", 17),
    ("null", 17),
    (BASELINE, 17),
    (f"{GAIN_METRIC} gain", 17),
)


WORDS = ("scorer", "negatives", "explainer")


def _arms(of_sae: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame, pl.DataFrame]]:
    """Of one SAE's report: what scored and in which metric, rows to show, rows that tell the gain."""
    key = ["scorer", "judge", "embedder", "profile", "negatives"]
    several = {s for (s,), rows in of_sae.group_by("scorer") if rows.select("judge", "embedder").n_unique() > 1}
    for (scorer, judge, embedder, profile, _), rows in of_sae.group_by(key, maintain_order=True):
        metric = SHOWN_METRIC if SHOWN_METRIC in rows["metric"] else GAIN_METRIC
        by = f" by {embedder or judge}" if scorer in several else ""
        notes = [] if metric == SHOWN_METRIC else [metric]
        notes += [] if profile == schema.DEFAULT_PROFILE else [f"profile {profile}"]
        unlike = f" ({', '.join(notes)})" if notes else ""
        yield f"{scorer}{by}{unlike}", rows.filter(metric=metric), rows.filter(metric=GAIN_METRIC)


def _kind(workspace: Workspace, partition: str) -> str:
    sae = workspace.registry.saes.get(partition)
    if sae is None:
        return ""
    return " (control)" if sae.control else " (baseline)" if sae.format in BASELINES else ""


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def _interval(row: dict[str, Any] | None, name: str) -> str:
    if row is None or row[name] is None:
        return ""
    value, low, high = (_short(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]" if low else f"{value} [none]"


def _print_next(workspace: Workspace) -> None:
    partition = next(iter(sorted(workspace.registry.saes)), "MODEL/HOOKPOINT/SAE")
    for sae in sorted(workspace.registry.saes, key=lambda name: (workspace.registry.saes[name].control, name)):
        found = workspace.store.current("detection_scores", sae)
        if found is not None:
            scored = found.scan(schema.SCORES).filter(status="ok").select("latent").head(1).collect()
            if scored.height:
                partition, latent = sae, scored.item()
                break
    else:
        latent = 0
    tool = Path(sys.executable).with_name("latentgloss")
    here = Path.cwd()
    tool = tool.relative_to(here) if tool.is_relative_to(here) else tool
    console.print(f"Artefacts: {workspace.store.files.root}", highlight=False, soft_wrap=True)
    for command, what in (
        ("make ui", "the graph, every run and picture, in the Dagster UI"),
        *([(f'{tool} search "raising an error"', "latents by meaning, by words or both")] if FULL else []),
        (f"{tool} explanations {partition} --latent {latent}", "what is said of a latent"),
        (f"{tool} scores {partition} --latent {latent}", "how good that is"),
        (f"{tool} lineage {partition} {latent} --verify", "where the score comes from, every hash recomputed"),
        (f"{tool} status", "what is fresh, stale or missing, and why"),
    ):
        console.print(f"  {command:<76} {what}", highlight=False, soft_wrap=True, markup=False)


def _print_failures(workspace: Workspace, states: Sequence[State]) -> int:
    said: set[str] = set()
    for state in (s for s in states if s.state != "fresh"):
        if state.partition in said:
            continue  # what follows from the first in the order of stages
        said.add(state.partition)
        console.print(f"{state.state}: {state.asset} of {state.partition}: {state.because}", style="red", markup=False)
    failed = bool(workspace.registry.problems) or any(s.state != "fresh" for s in states)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
