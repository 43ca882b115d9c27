"""Configuration of the documentation's site: `make docs` builds docs/_build/html."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent / "include")]

project = "Evergreen"
author = "the authors of Evergreen"
html_title = "Evergreen"

extensions = ["myst_parser", "sphinx_copybutton", "sphinx_design", "evergreen_reference"]
exclude_patterns = ["_build"]
nitpicky = True
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
templates_path: list[str] = []
pygments_style = "friendly"
pygments_dark_style = "monokai"

# A reader copies commands, neither prompts nor output.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_here_doc_delimiter = "EOF"
copybutton_line_continuation_character = "\\"

# `make docs-links` asks these, with patience.
linkcheck_retries = 3
linkcheck_timeout = 20
linkcheck_ignore = [r"http://(localhost|127\.0\.0\.1|mlflow|spark)\b.*", r"https://registry\.example\.com/.*"]
