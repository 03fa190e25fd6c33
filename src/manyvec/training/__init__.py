"""Training: `tune` adapts a model to judged queries, measures what that gained, and saves it only if it gained.

Names are imported when they are first used; `__init__.pyi` declares them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
