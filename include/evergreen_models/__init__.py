"""One folder per model; docs/guides/add-a-model.md describes how to add one.

Folders named `evergreen_models` elsewhere on the Python path hold models too: a deployment may keep its own apart.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
