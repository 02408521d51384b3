"""Data: loaders, the view pipeline, parts of splits, and the registered data sets.

A data set is a function registered in ``registry.DATASETS`` that returns a ``registry.DataSplit``; a file has one, or a
family. Modules without a registered function (``folder``, ``vision``, ...) hold what several of these files share.
"""

from pckd.data.loader import Loader
from pckd.data.prefetch import prefetch
from pckd.data.subset import hold_out, limit
from pckd.data.views import make_views

__all__ = ["Loader", "hold_out", "limit", "make_views", "prefetch"]
