"""The DAG in which the champion scores new periods in batch, and publishes its predictions.

`plan → score`

It runs when features are published, by the clock, in a backfill, or by hand for any range of periods. All examples of
a period are scored, with the features that were known at each, whether or not their labels are known. The predictions
are in the dataset `predictions/<model>` of the lake, with the version that made them.

**A new DAG is paused.** Unpause it: until then, neither the clock nor published features start it, and a run that is
triggered waits.

**A period keeps its predictions.** A later champion, and features that are corrected later, do not change what was
predicted. A run with `rescore` scores its periods again, with the champion of now.

**When a run ends after `plan`,** there is no champion yet, or its periods have their predictions already, or no
features yet. Its log says which.

**When `plan` fails with `RawDataError`,** periods that somebody asked for have no published features. Run the features
DAG for them first.

**When `score` fails with `InputsChangedError`,** the champion was rolled back or lost since the run was planned, or
features were published at this moment: clear the run from `plan` on.

**Running it again** is always safe: what is published is not scored again.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.sdk import DAG, AssetOrTimeSchedule, CronDataIntervalTimetable, Param, get_current_context, task

from evergreen.orchestration.dag_run import (
    RETRY_ARGS,
    dag_kwargs,
    dag_run_info,
    data_range_kwargs,
    period_param,
    skip_tasks,
)
from evergreen.orchestration.dags.features import features_asset
from evergreen.orchestration.handover import ScorePlan, XCom
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec, ScorePolicy
from evergreen.window import resolve_features_window

_RESCORE = "rescore"  # key of the conf
_SCORE = "score"  # task id

log = logging.getLogger(__name__)


def score_dag(model: ModelSpec, policy: ScorePolicy) -> DAG:
    """`<model>.score`."""
    # The clock is for what no event tells of, such as features that a backfill has published.
    clock = CronDataIntervalTimetable(policy.schedule or model.schedule, timezone=feature_spec(model).timezone)
    with DAG(
        **dag_kwargs(model, "score", "The champion's predictions of new periods", __doc__),
        **data_range_kwargs(model),
        schedule=AssetOrTimeSchedule(timetable=clock, assets=[features_asset(model.feature_model)]),
        # Backfilled runs count too; at the limit, Airflow starts no run for an event.
        max_active_runs=4,
        default_args={
            "owner": model.owner,
            **RETRY_ARGS,
            "execution_timeout": timedelta(hours=2),
        },
        params={
            "start": period_param(model, "First period, if run by hand"),
            "end": period_param(model, "Last period, included"),
            _RESCORE: Param(
                False, type="boolean", description="Score periods again that have predictions, and replace these"
            ),
        },
    ) as dag:
        planned = plan(model.name)
        scored = score(model.name, planned)

        planned >> scored
    return dag


@task
def plan(name: str) -> XCom:
    """Decide which periods the run scores, and with which model."""
    from evergreen import batch_predictions, ledger
    from evergreen.registry import anchors

    context, model = get_current_context(), loader.load_spec(name)
    spec = feature_spec(model)
    window = resolve_features_window(
        dag_run_info(context, excluded_conf_keys=(_RESCORE,)),
        calendar=spec.calendar,
        first_day=spec.first_day,
        last_day=spec.last_day,
        allows_short_interval=True,
    )
    anchors.check_anchor(name)
    champion = batch_predictions.find_scoring_model(ledger.read_state(name))
    if champion is None:
        log.info("%s has no champion: nothing is scored; run this again when it has one", name)
        return skip_tasks(context, ScorePlan().dump(), [_SCORE])
    rescore = bool(context["params"].get(_RESCORE))
    periods = batch_predictions.plan_scoring(model, window, rescore=rescore)
    calendar = spec.calendar
    if periods.unchanged:
        log.info("%s: predictions are published already", calendar.describe(periods.unchanged))
    if periods.outdated:
        text = "features were published again since; predictions stay, unless a run with `rescore` replaces them"
        log.warning("%s: %s", calendar.describe(periods.outdated), text)
    if periods.unpublished:
        text = "there are no features yet; their publication starts a run"
        log.info("%s: %s", calendar.describe(periods.unpublished), text)
    score_plan = ScorePlan(
        periods=periods.due,
        rescore=rescore,
        model_version=champion.version,
        model_content=champion.content,
        labels_until=champion.labels_until,
    )
    if not periods.due:
        return skip_tasks(context, score_plan.dump(), [_SCORE])
    log.info("%s: scored by version %s", calendar.describe(periods.due), champion.version)
    return score_plan.dump()


@task(task_id=_SCORE)
def score(name: str, plan: XCom) -> XCom:
    """Score all examples of the periods with the champion, verified by its content, and publish the predictions."""
    from evergreen import batch_predictions

    score_plan = ScorePlan.load(plan)
    batch_predictions.publish_predictions(
        loader.load_spec(name), score_plan.periods, score_plan.scoring_model(), rescore=score_plan.rescore
    )
    return list(score_plan.periods)
