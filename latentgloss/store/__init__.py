"""The store: immutable versions named by their recipe, so that only stale results are computed.

- `store`    the partitions of each stage: their versions, the current version and the last failure
- `draft`    a version in the making, and its commit
- `version`  one finished version and its manifest
- `blocks`   the blocks in which a stage writes its tables
- `digests`  hashes of JSON, text, files and tables
- `local`    the file adapter: atomic writes and locks on a local disk
"""

from latentgloss.store.blocks import Block, Blocks
from latentgloss.store.draft import Draft
from latentgloss.store.local import LocalFiles
from latentgloss.store.store import Store
from latentgloss.store.version import Manifest, Version, fingerprint

__all__ = ["Block", "Blocks", "Draft", "LocalFiles", "Manifest", "Store", "Version", "fingerprint"]
