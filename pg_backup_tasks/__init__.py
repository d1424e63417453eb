"""PostgreSQL backup, restore and proof, as Invoke tasks.

`import pg_backup_tasks as db; ns = Collection(db); ns.configure(db.config())` gives a repository the tasks.
"""

from .collection import ns
from .errors import TaskError
from .running import config
from .settings import Settings

__all__ = ["Settings", "TaskError", "config", "ns"]
