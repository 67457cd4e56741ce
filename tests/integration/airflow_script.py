"""Run by the Python of an Airflow environment: load an exported DAG, run it whole, and print what was seen as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(file: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(file))
    (dag,) = bag.dags.values()
    order, task = [], next(task for task in dag.tasks if not task.upstream_task_ids)
    while task is not None:
        order.append(task.task_id)
        task = next((dag.get_task(name) for name in task.downstream_task_ids), None)
    seen: dict[str, Any] = {
        "errors": dict(bag.import_errors),
        "order": order,
        "dag": dag.dag_id,
        "timezone": str(dag.timezone),
        "schedule": str(dag.schedule),
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "retries": sorted({task.retries for task in dag.tasks}),
    }
    if "--run" in sys.argv:
        run = dag.test()
        seen["state"] = str(run.state)
        seen["states"] = {found.task_id: [str(found.state), found.try_number] for found in run.get_task_instances()}
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
