"""The queries of Dagster's own UI, taken from its bundled JavaScript, and their execution in this process.

What belongs here: reading the GraphQL documents that dagster-webserver ships, the variables for them, and running them
against an instance and a `Definitions` object as the webserver does. No server and no other process is started.
"""

import asyncio
import json
import logging
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import dagster as dg
import dagster_webserver
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.instance import InstanceType
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher.sync_in_memory_run_launcher import SyncInMemoryRunLauncher
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.remote_representation.grpc_server_registry import GrpcServerRegistry
from dagster._core.run_coordinator import DefaultRunCoordinator
from dagster._core.storage.event_log import InMemoryEventLogStorage
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.runs import InMemoryRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.backfill import execute_backfill_iteration
from dagster_graphql.schema import create_schema
from graphql import FieldNode, NameNode, SelectionSetNode, Visitor, parse, print_ast, visit
from graphql.language import ast

LOCATION, REPOSITORY = "latentgloss", "__repository__"
_START = re.compile(r"""(["'`])(?=\\n\s*(?:query|fragment|subscription)\s+\w)""")
"""The beginning of a JavaScript string that holds a GraphQL document."""


@lru_cache(maxsize=1)
def documents() -> dict[str, ast.DocumentNode]:
    """Every query and subscription of the UI by name, each with the fragments that it uses."""
    operations: dict[str, ast.OperationDefinitionNode] = {}
    fragments: dict[str, ast.FragmentDefinitionNode] = {}
    for path in sorted((Path(dagster_webserver.__file__).parent / "webapp/build/_next").rglob("*.js")):
        for text in _strings(path.read_text(encoding="utf-8", errors="replace")):
            for found in parse(text).definitions:
                if isinstance(found, ast.OperationDefinitionNode) and found.name:
                    operations[found.name.value] = visit(found, _Typenames())
                elif isinstance(found, ast.FragmentDefinitionNode):
                    fragments[found.name.value] = visit(found, _Typenames())
    return {
        name: ast.DocumentNode(definitions=(operation, *_used(operation, fragments)))
        for name, operation in sorted(operations.items())
    }


def _strings(code: str) -> Iterator[str]:
    """The GraphQL documents in JavaScript code."""
    for match in _START.finditer(code):
        at = match.end()
        while code[at] != match[1]:
            at += 2 if code[at] == "\\" else 1
        yield re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], code[match.end() : at])


class _Typenames(Visitor):
    """Adds `__typename` to every selection below the operation, as the UI's client does before it sends a query."""

    def leave_selection_set(
        self, node: SelectionSetNode, _key: object, parent: object, *_: object
    ) -> SelectionSetNode | None:
        if isinstance(parent, ast.OperationDefinitionNode):
            return None
        return SelectionSetNode(selections=(*node.selections, FieldNode(name=NameNode(value="__typename"))))


def _used(
    operation: ast.OperationDefinitionNode, fragments: Mapping[str, ast.FragmentDefinitionNode]
) -> list[ast.FragmentDefinitionNode]:
    found: dict[str, ast.FragmentDefinitionNode] = {}
    waiting: list[ast.Node] = [operation]
    while waiting:
        for name in re.findall(r"\.\.\.\s*(?!on\b)(\w+)", print_ast(waiting.pop())):
            if name not in found:
                found[name] = fragments[name]
                waiting.append(found[name])
    return list(found.values())


# -- variables -------------------------------------------------------------------------------------------------------


def variables(asset: str, check: str, partition: str, run_id: str, job: str, backfill_id: str) -> dict[str, Any]:
    """A value for each variable of the UI's queries, by name; by name and type where one name has several meanings."""
    repository = {"repositoryName": REPOSITORY, "repositoryLocationName": LOCATION}
    key = {"path": [asset]}
    pipeline = {**repository, "pipelineName": job}
    group = {**repository, "groupName": "scores"}
    sensor = {**repository, "sensorName": "registry"}
    schedule = {**repository, "scheduleName": "nightly_saes"}
    anything: dict[str, Any] = {}
    return {
        **_each("assetKey, key, input", key),
        **_each("assetKeys, assetSelection, upstreamAssetKeys", [key]),
        **_each("partition, partitionKey, partitionName", partition),
        **_each("partitions, partitionNames", [partition]),
        **_each("pipelineSelector, job, params, pipeline, selector PipelineSelector", pipeline),
        **_each("jobName, pipelineName, name", job),
        **_each("filter, runsFilter, runConfigData", anything),
        **_each("repositorySelector, selector RepositorySelector", repository),
        **_each("group, selector AssetGroupSelector", group),
        **_each("instigationSelector, selector InstigationSelector", {**repository, "name": "registry"}),
        **_each("sensorSelector, selector SensorSelector", sensor),
        **_each("scheduleSelector, selector ScheduleSelector", schedule),
        **_each("pool, concurrencyKey", "gpu"),
        **repository,
        "assetCheckKey": {"assetKey": key, "name": check},
        "backfillId": backfill_id,
        "checkName": check,
        "completedFilter": {"statuses": ["SUCCESS", "FAILURE", "CANCELED"]},
        "dagsterTypeName": "Nothing",
        "eventTypeSelectors": ["MATERIALIZATION", "FAILED_TO_MATERIALIZE", "OBSERVATION"],
        "inProgressFilter": {"statuses": ["STARTED"]},
        "limit": 1000,
        "locationName": LOCATION,
        "logKey": [run_id, "compute_logs", "none"],
        "mode": "default",
        "partitionSetName": f"{job}_partition_set",
        "queuedFilter": {"statuses": ["QUEUED"]},
        "resourceSelector": {**repository, "resourceName": "workspace"},
        "runId": run_id,
        "selector GraphSelector": {**repository, "graphName": job},
        "tagKeys": ["dagster/asset_partition_range_start"],
        "timestamp": "1",
        "view": "RUNS",
    }


def _each(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(", "), value)


def filled(name: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The variables of one query, or None if `values` has none for one that the query needs."""
    found = {}
    operation = documents()[name].definitions[0]
    assert isinstance(operation, ast.OperationDefinitionNode)
    for declared in operation.variable_definitions or ():
        variable, kind = declared.variable.name.value, print_ast(declared.type)
        exact = f"{variable} {kind.rstrip('!')}"
        if exact in values or variable in values:
            found[variable] = values[exact if exact in values else variable]
        elif kind.endswith("!"):
            return None
    return found


# -- execution -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ui:
    """Runs the UI's queries as the webserver does."""

    process: WorkspaceProcessContext
    schema: Any

    def ask(self, name: str, send: Mapping[str, Any]) -> Any:
        """The answer to a query of the UI, or the first message of a subscription.

        Raises AssertionError if the answer holds an error.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Dagster calls what it has deprecated itself
            answer = asyncio.run(self._execute(name, dict(send)))
        assert not answer.errors, f"{name}: {answer.errors[0]}"
        failed = list(errors(answer.data))
        assert not failed, f"{name}: {failed[0]}"
        return json.loads(json.dumps(answer.data))

    async def _execute(self, name: str, send: dict[str, Any]) -> Any:
        document = documents()[name]
        operation = document.definitions[0]
        assert isinstance(operation, ast.OperationDefinitionNode)
        with self.process.create_request_context() as context:
            if operation.operation.value != "subscription":
                return await self.schema.execute_async(print_ast(document), context_value=context, variable_values=send)
            stream = await self.schema.subscribe(print_ast(document), context_value=context, variable_values=send)
            return await anext(stream) if hasattr(stream, "__anext__") else stream


def errors(value: Any) -> Iterator[str]:
    """Every error object that stands in place of what a page asked for. Errors that were recorded are none."""
    if isinstance(value, dict):
        kind = str(value.get("__typename", ""))
        if kind == "PythonError" or kind.endswith("NotFoundError"):
            yield f"{kind}: {value.get('message')}"
        value = [inner for key, inner in value.items() if key not in ("error", "cause", "errorChain")]
    for inner in value if isinstance(value, list) else ():
        yield from errors(inner)


@contextmanager
def instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with all that a page needs. Runs and events are kept in memory, where they are quicker."""
    folder.mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance(
        instance_type=InstanceType.PERSISTENT,
        local_artifact_storage=LocalArtifactStorage(str(folder)),
        run_storage=InMemoryRunStorage(),
        event_storage=InMemoryEventLogStorage(),
        schedule_storage=SqliteScheduleStorage.from_local(str(folder / "schedules")),
        compute_log_manager=NoOpComputeLogManager(),
        run_coordinator=DefaultRunCoordinator(),
        run_launcher=SyncInMemoryRunLauncher(),
        ref=InstanceRef.from_dir(str(folder)),
    ) as made:
        yield made


@contextmanager
def ui(used: dg.DagsterInstance, module: str) -> Iterator[Ui]:
    """The UI of an instance and of the `Definitions` in a module."""
    origin = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name=module), location_name=LOCATION)
    no_servers = create_autospec(GrpcServerRegistry, instance=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `Ui.ask`
        target = InProcessWorkspaceLoadTarget(origin)
        with WorkspaceProcessContext(used, target, grpc_server_registry=no_servers) as process:
            broken = process.create_request_context().code_location_errors()
            assert not broken, broken[0].to_string()
            yield Ui(process, create_schema())


def requested(ui: Ui, used: dg.DagsterInstance, backfill_id: str, assets: Sequence[str], keys: Sequence[str]) -> None:
    """Asks for a backfill, as the UI's dialog does."""
    with ui.process.create_request_context() as context:
        used.add_backfill(
            PartitionBackfill.from_asset_partitions(
                backfill_id=backfill_id,
                asset_graph=context.asset_graph,
                partition_names=list(keys),
                asset_selection=[dg.AssetKey(name) for name in assets],
                backfill_timestamp=time.time(),
                tags={},
                dynamic_partitions_store=used,
                all_partitions=False,
                title=None,
                description=None,
                run_config=None,
            )
        )


def backfill(ui: Ui, used: dg.DagsterInstance, assets: Sequence[str], keys: Sequence[str]) -> PartitionBackfill:
    """Asks for a backfill and does what the daemon does until it has ended."""
    requested(ui, used, "backfill", assets, keys)
    for _ in range(10):
        errors = [e for e in execute_backfill_iteration(ui.process, logging.getLogger("backfill")) if e is not None]
        assert not errors, errors[0].to_string()
        found = used.get_backfill("backfill")
        assert found is not None
        if found.status != BulkActionStatus.REQUESTED:
            return found
    raise AssertionError("the backfill has not ended")
