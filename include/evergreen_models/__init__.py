"""The model folders: every folder in those that `EVERGREEN_MODELS` names is a package here.

The models of a company are so imported by the same name wherever their folders are, and whatever these are called.
"""

from evergreen.settings import settings

__path__ = [str(folder) for folder in settings().models]
