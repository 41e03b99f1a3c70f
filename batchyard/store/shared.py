"""Everything of a job store that both dialects share."""

from __future__ import annotations

from batchyard.store.bulks import Bulks
from batchyard.store.chores import Chores
from batchyard.store.computations import Computations
from batchyard.store.editing import Editing
from batchyard.store.fleet import Fleet
from batchyard.store.health import Health
from batchyard.store.ledger import Ledgers
from batchyard.store.order import Order
from batchyard.store.outbox import Outbox
from batchyard.store.pools import Pools
from batchyard.store.reading import Readers
from batchyard.store.reaping import Reaping
from batchyard.store.registry import Registry
from batchyard.store.retention import Retention


class SharedStore(
    Registry,
    Fleet,
    Pools,
    Order,
    Readers,
    Bulks,
    Editing,
    Reaping,
    Chores,
    Retention,
    Computations,
    Outbox,
    Health,
    Ledgers,
):
    """A dialect adds what `SqlStore` asks for, and `close`, `ping`, `durability`, `submit`, `claim`, `finish`,
    `release` and `fold`; it may override any other method that deserves statements of its own."""
