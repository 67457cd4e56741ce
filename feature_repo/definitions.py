"""The only module Feast scans: binds every object of the ledger at module level.

Feast registers what is bound to a module's names and deletes what is not, so this file holds no
definition of its own. The home folder is ``.headwater`` beside this folder, or ``$HEADWATER_HOME``.
"""

import os
from pathlib import Path

from feature_repo.lake import Home
from feature_repo.ledger import open_ledger
from feature_repo.views import feast_objects

_home = Home(Path(os.environ.get("HEADWATER_HOME") or Path(__file__).resolve().parent.parent / ".headwater"))
globals().update(feast_objects(_home, open_ledger(_home)))
