"""Files in, documents out: `read` files and folders, `split` long documents, `sync` an index with them.

Names are imported when they are first used; `__init__.pyi` declares them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
