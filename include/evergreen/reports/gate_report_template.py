"""The page as a Jinja template: one file, no script, nothing fetched."""

GATE_REPORT_TEMPLATE = """\
{% macro plot(of) %}
{% for problem in of.problems %}
<p class="problem">{{ problem }}</p>
{% endfor %}
{% if of.svg %}
<div class="scroll"><div class="plot">{{ of.svg|drawn }}</div></div>
{% endif %}
{% endmacro %}
{% macro mark(outcome) %}
<span class="mark {{ outcome }}">{{ marks[outcome] }} {{ outcome|replace("_", " ") }}</span>
{%- endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ a.model }}: gates for candidate {{ a.candidate_fingerprint[:12] }}</title>
<style>
{{ style }}.finding { font-weight: 600; margin-bottom: 0; }
.finding.yes { border-color: var(--passed); background: #e8f3ee; color: #084a36; }
.finding.no { border-color: var(--failed); background: #fbe9e5; color: #7c2413; }
.why { background: var(--paper); border: 1px solid var(--line); border-top: 0; border-radius: 0 0 8px 8px;
  margin: 0 0 22px; padding: 12px 20px 12px 38px; }
.why b { font-weight: 600; }
.mark { white-space: nowrap; min-width: 8.6em; }
.facts { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px 28px; margin: 22px 0; }
.facts dt { margin: 0; font-size: 13px; color: var(--soft); font-weight: 400; }
.facts dd { overflow-wrap: anywhere; }
@media (max-width: 800px) { .facts { grid-template-columns: repeat(2, 1fr); } }
.gates td, .gates th { padding: 7px 8px; }
.gates td:first-child { min-width: 15em; }
.gates td:last-child { min-width: 18em; width: 38%; font-size: 14px; }
.gates b { font-weight: 600; overflow-wrap: anywhere; }
.plot { min-width: 720px; }
.problem { background: #fdf3dc; border-left: 4px solid var(--blocked); padding: 8px 14px; margin: 10px 0;
  border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
.bar { background: #e3e9e6; border-radius: 3px; height: 10px; width: 160px; overflow: hidden; margin-top: 6px; }
.bar i { display: block; height: 10px; background: #4d5a54; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 0 20px; }
.two section { margin: 0 0 20px; }
@media (max-width: 800px) { .two { grid-template-columns: 1fr; } }
h2 .mark { font-size: 14px; margin-left: 8px; min-width: 0; }
.bins td, .bins th { padding: 3px 8px; font-size: 13px; }
h3 { font-size: 15px; margin: 18px 0 0; overflow-wrap: anywhere; }
@media print {
  body, .finding { font-size: 11px; }
  h1 { font-size: 20px; } h2 { font-size: 14px; } h3 { font-size: 12px; }
  section { padding: 10px; }
  .facts { grid-template-columns: repeat(4, 1fr); }
  .gates td, .gates td:last-child { font-size: 9.5px; }
  .note, .facts dt, code, .rule, th, .bins td, .bins th, h2 .mark { font-size: 9px; }
  .gates td, .gates th, .bins td, .bins th { padding: 3px 4px; }
  .gates td:first-child { min-width: 10em; }
  .gates td:last-child { min-width: 13em; }
  .mark, .plot { min-width: 0; }
}
</style>
</head>
<body>
<main>
<h1>{{ a.model }}: gates for a candidate</h1>
<p class="soft">{{ a.description }}</p>
<p class="finding {{ "yes" if v.promote else "no" }}">{{ "✓" if v.promote else "✗" }} {{ finding }}</p>
{% if blocking %}
<ul class="why">
{% for record in blocking %}
<li><b>{{ record.gate }}</b>: {{ record.reason }}</li>
{% endfor %}
</ul>
{% endif %}
<dl class="facts">
<div><dt>candidate</dt><dd>{{ a.candidate_fingerprint[:12] }}{% if a.candidate_version %}, version {{ a.candidate_version }}{% endif %}</dd></div>
<div><dt>champion</dt><dd>{{ "version " ~ a.champion_version if a.champion_version else "none yet" }}</dd></div>
<div><dt>as of</dt><dd>{{ a.as_of }}</dd></div>
<div><dt>holdout</dt><dd>{{ days }}; {{ "{:,}".format(a.holdout_rows) }} rows</dd></div>
<div><dt>owner</dt><dd>{{ a.owner }}</dd></div>
<div><dt>run</dt><dd>{{ a.run_id }}</dd></div>
<div><dt>origin</dt><dd>{{ a.run_reason }}</dd></div>
<div><dt>made from</dt><dd>
{%- for name, mark in a.input_fingerprints.items() %}{{ ", " if not loop.first }}{{ name }} <code title="{{ mark }}">
{{- mark[:12] }}</code>{% else %}–{% endfor %}</dd></div>
</dl>

<section>
<h2>Gates</h2>
<p class="note">All must pass; one that cannot be computed blocks. Interval: one-sided bounds of the gain over the
champion or the baseline, positive is better.</p>
<div class="scroll"><table class="gates">
<tr><th scope="col">gate</th><th scope="col">outcome</th><th scope="col" class="number">candidate</th>
<th scope="col" class="number">champion,<br>baseline</th><th scope="col" class="number">interval</th>
<th scope="col" class="number">threshold</th><th scope="col" class="number">level spent</th>
<th scope="col" class="number">rows</th><th scope="col">reason</th></tr>
{% for row in rows %}
{% set r = row.result %}
<tr><td><b>{% for part in r.gate.split("_") %}{{ "_" if not loop.first }}<wbr>{{ part }}{% endfor %}</b>
<span class="rule">{{ row.requirement }}</span></td>
<td>{{ mark(r.outcome) }}</td>
<td class="number" title="{{ r.candidate }}">{{ r.candidate|figure }}</td>
<td class="number" title="{{ row.reference_value }}">{{ row.reference_value|figure }}</td>
<td class="number">{% if r.interval %}{{ r.interval[0]|signed }} …<br>{{ r.interval[1]|signed }}
{%- else %}–{% endif %}</td>
<td class="number" title="{{ r.threshold }}">{{ row.limit }}</td>
<td class="number">{{ r.alpha|share }}</td>
<td class="number">{{ "{:,}".format(r.rows) }}</td>
<td>{{ r.reason }}</td></tr>
{% else %}
<tr><td colspan="9">no gates: nothing speaks for the candidate</td></tr>
{% endfor %}
</table></div>
</section>

{% if intervals or no_interval %}
<section>
<h2>Intervals against limits</h2>
<p class="note">The lower bound must not lie in the shaded part, left of the dashed limit. Each gate has a scale
of its own.</p>
{% if intervals %}{{ plot(intervals) }}{% endif %}
{% for record in no_interval %}
<p class="{{ "note" if record.outcome == "passed" else "problem" }}">{{ record.gate }} has no interval:
{{ record.reason }}</p>
{% endfor %}
</section>
{% endif %}

{% if a.alpha_budgets %}
<section>
<h2>Chance of a false promotion, over the model's life</h2>
<p class="note">Each comparison spends of a budget that must last for all retrains there will ever be. A comparison that
passed gives back what it had to the next one.</p>
<div class="scroll"><table>
<tr><th scope="col">gate</th><th scope="col" class="number">this comparison</th>
<th scope="col" class="number">spent so far</th>
<th scope="col" class="number">budget</th><th scope="col">share of the budget spent</th></tr>
{% for gate, level, budget in a.alpha_budgets %}
{% set part = 100 * level / budget if budget > 0 else 0 %}
<tr><td>{{ gate }}</td><td class="number">{{ levels.get(gate)|share }}</td>
<td class="number">{{ level|share }}</td><td class="number">{{ budget|share }}</td>
<td><div class="bar" role="img" aria-label="{{ "%.1f"|format(part) }} % of the budget">
<i style="width: {{ "%.1f"|format([part, 100]|min) }}%"></i></div></td></tr>
{% endfor %}
</table></div>
</section>
{% endif %}

<section>
<h2>{{ "Both models on the same rows" if a.champion_version else "The candidate on the holdout" }}</h2>
{% if classes %}
<p class="note">Calibration: ten bins of about equally many rows by prediction, with 95 % bounds; on the dotted line,
what is predicted happens.</p>
{% else %}
<p class="note">Dots: 400 of the rows. On the dotted line, predictions are right.</p>
{% endif %}
{{ plot(models) }}
{% if bins %}
<div class="scroll"><table class="bins">
<tr><th scope="col">calibration: tenth of the rows, by prediction</th>
{% for number in range(1, 11) %}<th scope="col" class="number">{{ number }}</th>{% endfor %}</tr>
{% for name, cells in bins %}
<tr><td>{{ name }}</td>{% for cell in cells %}<td class="number">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
</section>

{% for s in slices %}
<section>
<h2>Slices: {{ s.result.gate }} {{ mark(s.result.outcome) }}</h2>
<p>{{ s.result.reason }}</p>
{% if s.plot %}
<p class="note">{{ s.requirement }}. {{ "A slice fails when all of its interval lies in the shaded part, beyond the limit."
if s.result.champion is not none else "The shaded part is as wide as the values may lie apart." }}
Grey and hollow: too few rows, reported and not judged.
{% if s.hidden_count %}{{ s.hidden_count }} more are not shown.{% endif %}</p>
{{ plot(s.plot) }}
{% endif %}
</section>
{% endfor %}

<section>
<h2>Predictions now and on the holdout</h2>
{{ plot(drift) }}
</section>

<div class="two">
<section>
<h2>Serving</h2>
{% if serving %}
<div class="scroll"><table>
<tr><th scope="col">quantity</th><th scope="col" class="number">measured</th>
<th scope="col" class="number">at most</th><th scope="col">outcome</th></tr>
{% for q in serving %}
<tr><td>{{ q.name }}</td><td class="number">{{ q.value|figure }}</td>
<td class="number">{{ q.limit|figure }}</td><td>{% if q.outcome %}{{ mark(q.outcome) }}{% endif %}</td></tr>
{% endfor %}
</table></div>
{% else %}
<p class="problem">nothing was measured{% if no_serving %}: {{ no_serving }}{% endif %}</p>
{% endif %}
</section>
<section>
<h2>Inputs</h2>
<h3>Model and serving</h3>
{% if signature.problem is defined %}
<p class="problem">no signature: {{ signature.problem }}</p>
{% elif signature %}
<div class="scroll"><table><tr><th scope="col">the model takes</th><th scope="col">serving gives</th></tr>
{% for model, serving in signature[:20] %}
<tr><td>{{ model or "–" }}</td><td>{{ serving or "–" }}</td></tr>
{% endfor %}
</table></div>
{% if signature|length > 20 %}<p class="note">{{ signature|length - 20 }} more places differ.</p>{% endif %}
{% else %}
<p>the same columns, in order and type</p>
{% endif %}
<h3>Online and offline</h3>
<p{% if online_problem %} class="problem"{% endif %}>{{ online }}</p>
</section>
</div>

{% if missing %}
<section>
<h2>Missing</h2>
<dl>
{% for name, problem in missing %}
<dt>{{ name }}</dt><dd>{{ problem }}</dd>
{% endfor %}
</dl>
</section>
{% endif %}
<p class="note">Candidate <code>{{ a.candidate_fingerprint }}</code>. The same evidence gives the same bytes.</p>
</main>
</body>
</html>
"""
