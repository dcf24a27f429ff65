"""Whether there is a hub to ask. Without one a look-up fails at once, instead of after minutes of retries."""

from __future__ import annotations

from foreword.reaching import answers as answers
from foreword.reaching import way_to

REMEDY = "download it where there is a network, and give the folder"


def reached() -> bool:
    """Return True if the hub, or the proxy to it, takes a connection soon; False with `HF_HUB_OFFLINE`."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and answers(way_to(constants.ENDPOINT))
