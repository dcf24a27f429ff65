"""Many saved prefixes for one base."""

from foreword.store.pool import PrefixPool

__all__ = ["PrefixPool"]
