"""What other libraries say while a base is loaded, and nobody needs to read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Transformers imports torchao if it is installed; it tells of kernels that the machine hasn't, and pytree of torchao
NOISY = ("torchao", "torch.utils._pytree")
# Transformers tells of flags that greedy decoding ignores, though a checkpoint's own settings name them
IGNORED = ("generation flags are not valid", "fix_mistral_regex", "right-padding was detected", "`pad_token_id`")


class _Unneeded(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in str(record.msg) for text in IGNORED)


_FILTER = _Unneeded()


def silence() -> None:
    """Raise the level of noisy loggers that nobody has set, and drop what is said of every checkpoint."""
    for name in NOISY:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
    for name in ("transformers.generation.utils", "transformers.generation.configuration_utils"):
        logging.getLogger(name).addFilter(_FILTER)  # once: adding it again does nothing


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the block Transformers draws no progress bars and gives no advice; then as before."""
    from transformers.utils import logging as transformers_logging

    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
