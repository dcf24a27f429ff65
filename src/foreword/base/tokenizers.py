"""What a tokenizer does, in few bytes: two of the same identity make the same ids of the same texts."""

from __future__ import annotations

import hashlib
from typing import Any

from foreword.base.chat import prints_date


def tokenizer_identity(tokenizer: Any) -> dict[str, str] | None:
    """Return a digest of all that a fast tokenizer's ids and chats depend on.

    None for a slow one, which doesn't tell, and for a chat template that writes today's date.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or prints_date(tokenizer):
        return None
    told = {name: repr(getattr(tokenizer, name, None)) for name in ("add_bos_token", "add_eos_token", "chat_template")}
    told |= {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    told |= {"class": type(tokenizer).__name__, "size": str(len(tokenizer))}
    text = "\n".join(f"{name}={value}" for name, value in sorted(told.items()))
    hashed = hashlib.sha256(backend.to_str().encode("utf-8", "surrogatepass"))
    hashed.update(text.encode("utf-8", "surrogatepass"))
    return {"tokenizer": hashed.hexdigest()}
