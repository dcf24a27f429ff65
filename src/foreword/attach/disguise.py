"""Classes that a model and its configs have while something is attached.

Some of their attributes then depend on the context that reads them, which instance attributes can't. In a context
without an attachment everything is as before. (PyTorch's FSDP2 changes the class of a module in the same way.)

Another thread may change an object's class back while one of these attributes is being read. So they are made for one
class each, and ask nothing of the class that the object has at that moment.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from foreword.attach.function import IMPLEMENTATION
from foreword.attach.state import State
from foreword.errors import AttachError

_STORED = "_attn_implementation_internal"  # where a config keeps what `_attn_implementation` returns


def config_disguise(kind: type[Any], state: State) -> type[Any]:
    """Return a subclass of the config class `kind`. In contexts with an attachment, its attention is Foreword's."""

    def implementation(config: Any) -> Any:
        return config.__dict__[_STORED] if state.current is None else IMPLEMENTATION

    def store(config: Any, value: Any) -> None:
        if value != IMPLEMENTATION:  # a model that is made from the config writes what it has read from it
            config.__dict__[_STORED] = value

    def reduce(config: Any, protocol: Any) -> Any:
        return _plain_config, (kind, dict(config.__dict__))

    def equal(config: Any, other: Any) -> Any:
        undisguised = _plain_config(kind, other.__dict__) if type(other) is type(config) else other
        return bool(_plain_config(kind, config.__dict__) == undisguised)

    attributes = {
        "_attn_implementation": property(implementation, kind._attn_implementation.fset),
        _STORED: property(lambda config: config.__dict__[_STORED], store),
        "__reduce_ex__": reduce,
        "__eq__": equal,
        "__hash__": kind.__hash__,
    }
    return _subclass(kind, attributes)


def model_disguise(kind: type[Any], state: State) -> type[Any]:
    """Return a subclass of the model class `kind`, with a `generate` that can be given to a thread."""

    def reduce(model: Any, protocol: Any) -> Any:
        raise AttachError("the model has a prefix attached; end the attach before the model is copied or pickled")

    return _subclass(kind, {"generate": _Generate(kind, state), "__reduce_ex__": reduce})


class _Generate:
    """`model.generate`. It takes along what is attached where it is looked up.

    `Thread(target=model.generate, …)` is how Transformers' streamers are used. A new thread has an empty context. Where
    the caller has attached something itself, that counts.
    """

    def __init__(self, kind: type[Any], state: State) -> None:
        self._kind, self._state = kind, state

    def __get__(self, model: Any, kind: Any = None) -> Any:
        own = _inherited(self._kind, "generate").__get__(model, self._kind)
        attachment = self._state.current
        if attachment is None or model is None:
            return own

        @functools.wraps(getattr(own, "__func__", own))
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            if self._state.current is not None:
                return own(*args, **kwargs)
            with self._state.activate(attachment):
                return own(*args, **kwargs)

        return types.MethodType(generate, model)


class _Bare:
    """Keeps `__init_subclass__` from making a dataclass of a config's subclass, or registering a model's."""

    def __init_subclass__(cls) -> None:
        """Do nothing."""


def is_disguised(thing: Any) -> bool:
    """Return True if a model or config has the class of a disguise."""
    return isinstance(thing, _Bare)


def _subclass(kind: type[Any], attributes: dict[str, Any]) -> type[Any]:
    """Return a subclass of `kind` with the same name, by which Transformers looks classes up."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (_Bare, kind), names | attributes)


def _inherited(kind: type[Any], name: str) -> Any:
    """Return what `kind` has for `name`, unbound. Raises `AttributeError`."""
    for parent in kind.__mro__:
        if name in parent.__dict__:
            return parent.__dict__[name]
    raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")


def _plain_config(kind: type[Any], attributes: dict[str, Any]) -> Any:
    """Return a copy of a config, without the disguise."""
    copy: Any = object.__new__(kind)
    copy.__dict__.update(attributes)
    return copy
