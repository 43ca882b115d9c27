"""The page of the report, as a Jinja template: one file, no script, nothing fetched."""

BACKTEST_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.model }}: walk-forward backtest</title>
<style>
{{ style }}.policy { font-weight: 600; white-space: nowrap; }
.policy i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
tr.ours td { background: #eef6f2; }
.gates th { padding: 6px 8px; }
.gates td { padding: 3px 8px; font-size: 13px; white-space: nowrap; }
.promoted { color: var(--passed); font-weight: 600; }
</style>
</head>
<body>
<main>
<h1>{{ r.model }}: walk-forward backtest</h1>
<p class="soft">{{ r.description }}</p>
<p class="soft">{{ r.steps|length }} candidate{{ "s" if r.steps|length != 1 }},
{{ r.steps[0].as_of }}{% if r.steps|length > 1 %} to {{ r.steps[-1].as_of }}{% endif %}, each trained on at most
{{ r.train_days }} days and judged on the {{ r.holdout_days }} days after them, with only what was known on its date.
{% if r.excluded_candidates %}{{ r.excluded_candidates }} candidate{{ "s" if r.excluded_candidates != 1 }} of another spec
{{ "are" if r.excluded_candidates != 1 else "is" }} left out.{% endif %}</p>
<p class="finding">{{ finding }}</p>

<section>
<h2>What each policy would have delivered</h2>
<p class="note">{{ r.metric }}, {{ "higher" if r.higher_is_better else "lower" }} is better, on the same labelled rows
for all: {{ r.compared_periods|length }} of {{ r.periods|length }} periods, those in which every policy had a model. Gain: mean
per period over never retraining, positive is better, with one-sided 95 % bounds.</p>
<div class="scroll"><table>
<tr><th>policy</th><th class="number">mean {{ r.metric }}</th><th class="number">worst {{ period }}</th>
<th class="number">gain over never</th><th class="number">95 % bounds</th>
<th class="number">models deployed</th><th class="number">models trained</th></tr>
{% for p in r.policies %}
<tr{% if p.name == "gates" %} class="ours"{% endif %}>
<td class="policy"><i style="background: {{ colours[p.name] }}"></i>{{ p.label }}
<span class="rule">{{ p.rule }}</span></td>
<td class="number">{{ p.mean|figure }}</td>
<td class="number">{{ p.worst_value|figure }}{% if p.worst_period_start %}
<span class="rule">from {{ p.worst_period_start }}</span>{% endif %}</td>
<td class="number">{% if p.gain_over_never %}{{ "%+.4f"|format(p.gain_over_never.mean) }}{% else %}–{% endif %}</td>
<td class="number">{% if p.gain_over_never %}{{ "%+.4f"|format(p.gain_over_never.low) }} …
{{ "%+.4f"|format(p.gain_over_never.high) }}{% else %}–{% endif %}</td>
<td class="number">{{ p.deployments|length }}</td><td class="number">{{ p.training_count }}</td></tr>
{% endfor %}
</table></div>
</section>

{% if plot %}
<section>
<h2>Over time</h2>
<p class="note">Each {{ period }} is measured with the model that was live in it and had seen none of it.
Below: how long each deployed model lived; a new shade is a new model.</p>
{{ plot }}
</section>
{% endif %}

{% if drifts %}
<section>
<h2>What “on drift” reacted to</h2>
<div class="scroll"><table class="gates">
<tr><th>deployed as of</th><th class="number">days live</th><th>because the model before fell</th></tr>
{% for d in drifts %}
<tr><td>{{ d.as_of }}</td><td class="number">{{ d.live_days }}</td><td>{{ d.reason }}</td></tr>
{% endfor %}
</table></div>
</section>
{% endif %}

<section>
<h2>Every date, every gate</h2>
<p>{{ lives }}</p>
<p class="note">Candidate’s value; for comparisons, candidate against champion. Point at a cell for the reason
in full.</p>
<div class="scroll"><table class="gates">
<tr><th>candidate as of</th><th class="number">rows learned</th><th>against</th>
{% for name in gates %}
<th>{% for part in name.split("_") %}{{ "_" if not loop.first }}<wbr>{{ part }}{% endfor %}</th>
{% endfor %}
<th>decision</th>
<th class="number">days champion</th><th class="number">mean {{ r.metric }} then</th></tr>
{% for d in r.steps %}
<tr><td title="candidate {{ d.candidate_fingerprint[:12] }}, judged from {{ d.holdout_start }}">{{ d.as_of }}</td>
<td class="number">{{ "{:,}".format(d.train_rows) }}</td><td>{{ d.champion_as_of or "no champion" }}</td>
{% for record in d.verdict.results %}
<td><span class="mark {{ record.outcome }}" title="{{ record.reason }} (limit {{ record.threshold }})">
{{- marks[record.outcome] }} {{ record.candidate|figure }}
{%- if record.champion_as_of is not none %} / {{ record.champion_as_of|figure }}{% endif %}</span></td>
{% endfor %}
<td title="{{ d.reason }}">{% if d.promoted %}<span class="promoted">promoted</span>
{% else %}{{ "champion stays" if d.champion_as_of else "no champion yet" }}{% endif %}</td>
{% set life = champions.get(d.as_of) %}
<td class="number">{% if life %}{{ life[0].live_days }}{{ "" if life[0].end else "+" }}{% endif %}</td>
<td class="number">{% if life %}{{ life[1]|figure }}{% endif %}</td></tr>
{% endfor %}
</table></div>
<p class="note">{{ marks.passed }} passed &nbsp; {{ marks.failed }} failed &nbsp; {{ marks.not_computed }} could not be
computed, which blocks as well</p>
</section>

<section>
<h2>How to read this</h2>
<dl>
<dt>No future</dt><dd>A candidate as of a day has learned from days before its holdout, which ends on that day, and from
features known at each prediction. It is measured only on later days.</dd>
<dt>Rows</dt><dd>A period’s rows are those of the next date’s holdout, from the date on. Dates that are closer than a
holdout share no rows twice. Where dates are further apart than a holdout, the days in between are not measured, for any
policy{% if unmeasured %}: here {{ unmeasured }} periods have
such days{% endif %}. Labels that became known after the next date are not counted.</dd>
<dt>Gates</dt><dd>The model’s own gates, on the candidate’s own holdout, against the champion so
far; a candidate without a champion is held against thresholds only. Nothing was registered or promoted.</dd>
<dt>Drift</dt><dd>Two-sample bootstrap (Efron and Tibshirani 1993, chapters 8 and 13): the live model’s
{{ r.metric }} on the newest labelled period against that on its own holdout; deployed anew when the one-sided 95 %
upper bound of the change is below zero. It counts the luck of drawing rows, not that weeks differ.</dd>
<dt>Bounds of the gain</dt><dd>Periods drawn with replacement, taken as independent: with neighbours alike they are
somewhat too narrow. A choice among policies made by this page is fitted to this stretch of time.</dd>
</dl>
<p class="note">Spec <code>{{ r.spec_fingerprint[:12] }}</code>, made from <code>{{ r.fingerprint[:12] }}</code>. The same
candidates give the same bytes.</p>
</section>
</main>
</body>
</html>
"""
