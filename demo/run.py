"""`make demo`: explain and score the latents of every SAE in the registry, then print what came out.

Runs the very assets of the Dagster project, in this process and in as few runs as the grains allow, so that a model
is loaded once and every record is in the Dagster UI. What is fresh computes nothing.

With `--full`: the settings in `demo/full.toml`, and the search index, for which every explanation is embedded.
LATENTGLOSS_CONFIG names other settings.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FULL = "--full" in sys.argv[1:]
os.environ.setdefault("LATENTGLOSS_CONFIG", str(ROOT / ("demo/full.toml" if FULL else "latentgloss.toml")))
os.environ.setdefault("DAGSTER_HOME", str(ROOT / "data" / "dagster"))
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait for work sleep instead of spinning

from latentgloss.machine.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()  # before any thread has an arena of its own

from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.progress import Progress as Bars  # noqa: E402
from rich.table import Column  # noqa: E402

from latentgloss import schema  # noqa: E402
from latentgloss.cli.report import first_screen, report_rows, write_page  # noqa: E402
from latentgloss.config.entries import BASELINES  # noqa: E402
from latentgloss.errors import LatentglossError  # noqa: E402
from latentgloss.pipeline.graph import STAGES  # noqa: E402
from latentgloss.pipeline.stage import Stage  # noqa: E402
from latentgloss.workspace import State, Workspace  # noqa: E402

if TYPE_CHECKING:
    import dagster as dg

    from resources.progress import Advance, Progress

_TERMINAL = os.fdopen(os.dup(sys.stdout.fileno()), "w") if sys.stdout.isatty() else None
"""The terminal itself: while a step runs, Dagster sends what is written to standard output to a file."""

console = Console(file=_TERMINAL) if _TERMINAL else Console(width=190)


def main() -> int:
    began = time.monotonic()
    try:
        workspace = Workspace.open()
        for path, error in workspace.registry.problems.items():
            console.print(f"left out: {path.name}: {error}", style="red", markup=False, highlight=False)
        states = _states(workspace)
        if all(s.state == "fresh" for s in states) and _recorded(workspace, states):
            console.print(f"Everything is fresh: nothing to compute ({time.monotonic() - began:.1f} s).\n")
        else:
            _announce(states)
            with _instance() as instance:
                _materialise(instance, workspace, _stages())
            console.print(f"Took {time.monotonic() - began:.0f} s.\n", highlight=False)
            workspace = Workspace.open()
            states = _states(workspace)
            if all(s.state == "fresh" for s in states):
                RECORD.write_text(json.dumps(_versions(workspace, states)))
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


def _states(workspace: Workspace) -> list[State]:
    """States of what is run; `latentgloss search` needs more, which only `make demo-full` runs."""
    return [state for state in workspace.states() if FULL or STAGES[state.asset].noun != "embeddings"]


def _instance() -> "dg.DagsterInstance":
    import dagster as dg

    home = Path(os.environ["DAGSTER_HOME"])
    if not (home / "dagster.yaml").is_file():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "dagster.yaml", home)
    return dg.DagsterInstance.get()


RECORD = Path(os.environ["DAGSTER_HOME"]) / "demo.json"
"""The versions that the last whole run reported to Dagster. Beside Dagster's own records, so that both go together."""


def _versions(workspace: Workspace, states: Sequence[State]) -> dict[str, str]:
    """Fingerprints of the current versions, by stage and partition."""
    found = {(s.asset, s.partition): workspace.store.current(s.asset, s.partition) for s in states}
    return {
        f"{asset} {partition}": version.manifest.fingerprint for (asset, partition), version in found.items() if version
    }


def _recorded(workspace: Workspace, states: Sequence[State]) -> bool:
    """True if the last whole run was about these versions. Asking Dagster itself would take seconds to load it."""
    try:
        known = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return False
    return bool(known == _versions(workspace, states))


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
    """The first screen of `latentgloss report`, and every row as a page."""
    rows = report_rows(workspace, sorted(workspace.registry.models))
    if rows.is_empty():
        console.print("There is no report yet.")
        return
    page = workspace.settings.store_root / "report.md"
    write_page(workspace, rows, page)
    for line in first_screen(workspace, rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nEvery row and metric: {_from_here(page)}", highlight=False, markup=False, soft_wrap=True)


def _from_here(path: Path) -> Path:
    """A path as people would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_next(workspace: Workspace) -> None:
    """Three commands that lead further."""
    saes = sorted(
        workspace.registry.saes.values(), key=lambda sae: (sae.control, sae.format in BASELINES, sae.partition)
    )
    partition, latent = "MODEL/HOOKPOINT/SAE", 0
    for sae in saes:
        found = workspace.store.current("detection_scores", sae.partition)
        scored = found.scan(schema.SCORES).filter(status="ok").select("latent").head(1).collect() if found else None
        if scored is not None and scored.height:
            partition, latent = sae.partition, scored.item()
            break
    tool = _from_here(Path(sys.executable).with_name("latentgloss"))
    commands = {
        "make ui": "the Dagster UI",
        f"{tool} lineage {partition} {latent}": "a score's origin",
        **(
            {f'{tool} search "raising an error"': "latents by meaning"}
            if FULL
            else {f"{tool} show {partition} {latent}": "one latent on one screen"}
        ),
    }
    width = max(map(len, commands))
    console.print("")
    for command, what in commands.items():
        console.print(f"  {command:<{width}}  {what}", highlight=False, soft_wrap=True, markup=False)


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
