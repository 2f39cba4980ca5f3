"""The store: immutable versions named by their recipe, so that only what is stale is computed.

- `store`    partitions, their versions and pointers; a version in the making (`Draft`)
- `version`  one version and its manifest
- `blocks`   the pieces in which tables are written
- `digests`  hashes of JSON, text, files and tables
- `local`    the file adapter: atomic writes and locks on a local disk
"""

from latentgloss.store.blocks import Block, Blocks
from latentgloss.store.local import LocalFiles
from latentgloss.store.store import Draft, Store
from latentgloss.store.version import Manifest, Version, fingerprint

__all__ = ["Block", "Blocks", "Draft", "LocalFiles", "Manifest", "Store", "Version", "fingerprint"]
