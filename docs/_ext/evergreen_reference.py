"""Sphinx directives that generate the reference from the code, when the site is built.

```{evergreen-settings}
```
```{evergreen-model} evergreen.spec.model:ModelSpec
```
```{evergreen-gates}
```
```{evergreen-feature-types}
```
```{evergreen-metrics}
```
```{evergreen-commands}
```
"""

from __future__ import annotations

from typing import Any, ClassVar

import reference_tables
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class ReferenceDirective(SphinxDirective):
    """Parses generated Markdown in place of the directive."""

    optional_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the page changes with the code, which Sphinx does not watch
        text = reference_tables.render_directive(self.name, *self.arguments)
        container = nodes.Element()
        lines = StringList(text.splitlines(), source=self.get_source_info()[0])
        self.state.nested_parse(lines, self.content_offset, container, match_titles=True)
        for table in container.findall(nodes.table):
            table["classes"].append("generated")
        return container.children


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    for name in reference_tables.DIRECTIVES:
        app.add_directive(name, ReferenceDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
