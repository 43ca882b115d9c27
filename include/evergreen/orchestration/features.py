"""The DAG that turns arriving raw days into published features, one run per day.

`check_raw → build → check_features → publish`

**When a run fails at `check_raw`,** raw data is missing or breaks a rule; the log names file, column, rule
and count. Deliver the file again and clear the run. Nothing that was published before has changed.

**When it fails at `check_features`,** the code in the model's `features.py` made something impossible.

**Running it again** is always safe: a day that is published with the same inputs, code and parameters is
found and not made again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, get_current_context

from evergreen import model as models
from evergreen.model import Model, feature_spec
from evergreen.orchestration.run import features_window, step
from evergreen.window import midnight

_TRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay": timedelta(seconds=5),
    # A Spark driver that ran out of memory hangs rather than ends.
    "execution_timeout": timedelta(minutes=30),
}


def features_dag(model: Model) -> DAG:
    """`<model>.features`."""
    spec = feature_spec(model)
    with DAG(
        dag_id=f"{model.name}.features",
        description=f"Raw days to published features of {model.name}",
        doc_md=f"{model.description}\n\n{__doc__}",
        schedule=CronDataIntervalTimetable(spec.schedule, timezone=spec.timezone),
        start_date=midnight(spec.first_day, spec.timezone),
        end_date=midnight(spec.last_day, spec.timezone) if spec.last_day else None,
        catchup=False,
        max_active_runs=4,
        default_args={"owner": model.owner, **_TRIES},
        tags=["evergreen", model.name, "features"],
        params={
            "start": Param(
                None, type=["null", "string"], format="date", description="First day, if run by hand"
            ),
            "end": Param(None, type=["null", "string"], format="date", description="Last day, included"),
        },
    ) as dag:
        publish(
            model.name,
            checked := check_raw(model.name),
            check_features(model.name, build(model.name, checked)),
        )
    return dag


@step()
def check_raw(name: str) -> dict[str, str]:
    """Check the raw files that the window is made from (Great Expectations).

    Fails with every broken rule: file, column, rule, count. Gives the fingerprint of each day's features.
    """
    from evergreen import features

    model = models.load(name)
    window = features_window(model, get_current_context())
    print(f"{window.origin}: {', '.join(map(str, window.days))}")
    return features.check_raw(model, window.days)


@step()
def build(name: str, wanted: dict[str, str]) -> dict[str, str]:
    """Compute the features of the days that are not published yet (Spark), into a private folder."""
    from evergreen import features

    return features.build(models.load(name), wanted)


@step()
def check_features(name: str, staged: dict[str, str]) -> dict[str, str]:
    """Check the computed features (Great Expectations); nothing is visible to anybody before this passes."""
    from evergreen import features

    features.check(models.load(name), staged)
    return staged


@step()
def publish(name: str, wanted: dict[str, str], staged: dict[str, str]) -> dict[str, str]:
    """Make each day visible in one step, with its manifest: rows, schema, content hash, fingerprint."""
    from evergreen import features

    return features.publish(models.load(name), wanted, staged)
