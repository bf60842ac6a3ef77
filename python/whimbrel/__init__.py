"""NumPy arrays larger than RAM.

An array from here is an ordinary ``numpy.ndarray``. What of it is cold leaves RAM for a device (compressed memory, a file)
and each page comes home when it is touched.

>>> import numpy as np, whimbrel
>>> a = whimbrel.zeros((2048, 1024), ram="4M", device="lz4")     # 16 MiB in 4
>>> a += np.arange(1024)
>>> float(a.sum())
1072693248.0
>>> whimbrel.stats(a)["pages_out"] > 2000
True

A session is a budget and a device; arrays with the same budget and device share one. Use `Session` to have one of your
own, to change its budget, or to have every array of a program managed:

>>> with whimbrel.Session(ram="8M") as session, session.managed():
...     b = np.ones((1024, 2048)) * 3       # an expression with a temporary: 32 MiB in 8
>>> float(b.sum())
6291456.0
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple, Union

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _core
from ._core import Error

__all__ = ["AWAY", "EMPTY", "Error", "MOVING", "Outcome", "RESIDENT", "Request", "Session", "advise", "array", "discard",
           "empty", "migrate", "pin", "prefetch", "residency", "session_of", "stats", "zeros"]
__version__ = "0.1.0"

#: Where a page is: the field ``where`` of `residency()`.
EMPTY, RESIDENT, AWAY, MOVING = 0, 1, 2, 3

Size = Union[int, str]
Shape = Union[int, Tuple[int, ...]]

_ADVICE = {"normal": 0, "sequential": 1, "random": 2, "cold": 3, "read-mostly": 4}
_REASONS = ("pinned", "busy", "device full", "over budget", "not managed", "device failed")


class Outcome(NamedTuple):
    """What a hint did, in pages of 4096 bytes: ``asked == moved + already + empty + refused``."""

    asked: int
    moved: int
    already: int  #: were where they were wanted
    empty: int  #: nothing had been written there
    refused: int
    reasons: Tuple[str, ...]  #: of the refused ones: pinned, busy, device full, over budget, not managed, device failed

    @classmethod
    def _of(cls, plain: _core.Outcome) -> "Outcome":
        reasons = tuple(name for bit, name in enumerate(_REASONS) if plain.reasons >> bit & 1)
        return cls(plain.asked, plain.moved, plain.already, plain.empty, plain.refused, reasons)


class Request:
    """A prefetch or migration under way. Dropped, it goes on by itself."""

    def __init__(self, plain: _core.Request) -> None:
        self._plain = plain

    def done(self) -> bool:
        return self._plain.done()

    def wait(self, seconds: Optional[float] = None) -> Optional[Outcome]:
        """The outcome; None when it is not there within that time."""
        plain = self._plain.wait(seconds)
        return None if plain is None else Outcome._of(plain)


def _bytes(size: Optional[Size], what: str) -> int:
    if size is None:
        return 0
    if isinstance(size, str):
        text = size.strip()
        unit = "KMGT".find(text[-1:].upper()) + 1 if text else 0
        try:
            value = float(text[:-1]) * 1024**unit if unit else float(text)
        except ValueError:
            raise ValueError(f"{what}={size!r}: not a size; a number of bytes, or with K, M, G or T: {what}='64M'") from None
        return int(value)
    return int(size)


def _range(a: np.ndarray) -> Tuple[int, int]:
    if not isinstance(a, np.ndarray):
        raise TypeError(f"a numpy.ndarray is needed, not {type(a).__name__}")
    bounds = np.byte_bounds if hasattr(np, "byte_bounds") else np.lib.array_utils.byte_bounds
    low, high = bounds(a)
    return int(low), int(high - low)


class Session:
    """Memory with a budget and a device of its own.

    ``ram``: most of it that is resident and uncompressed. ``total``: most RAM in all, the compressed store included. Bytes, or
    text as "512M" or "1.5G"; at least one of them. ``device``: "zstd", "lz4", "ram", "file:PATH" or "nbd:URI", as ``whimbrel run
    --device`` takes it.

    >>> import whimbrel
    >>> with whimbrel.Session(ram="4M", device="zstd") as session:
    ...     a = session.zeros(1 << 20)                  # 8 MiB
    ...     a[:] = 7
    ...     out = session.migrate(a)
    ...     (out.asked, out.moved + out.already)
    (2048, 2048)

    After the ``with`` block there are no new arrays; those there keep working, and the session ends with the last of them.
    """

    def __init__(self, ram: Optional[Size] = None, total: Optional[Size] = None, device: str = "zstd") -> None:
        if ram is None and total is None:
            raise ValueError("a session needs a budget: ram='1G', total='2G' or both")
        self._core = _core.Session(_bytes(ram, "ram"), _bytes(total, "total"), device)
        self.device = device
        with _lock:
            _live.add(self)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """No new arrays; those there keep working, and the session ends with the last of them."""
        self._closed = True

    def _allocate(self, size: int) -> NDArray[np.uint8]:
        if self._closed:
            raise ValueError("the session is closed: no new arrays")
        return self._core.allocate(size, self)

    _closed = False

    # ---- arrays ----

    def empty(self, shape: Shape, dtype: DTypeLike = float, order: str = "C") -> NDArray[Any]:
        """A new array. (Fresh memory is zero, so this is `zeros()`.)"""
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError("arrays of Python objects cannot be managed: the objects lie elsewhere")
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        size = int(np.prod(shape, dtype=object)) * kind.itemsize if shape else kind.itemsize
        if size == 0:
            return np.empty(shape, kind, order)  # type: ignore[call-overload]
        return np.ndarray(shape, kind, self._allocate(size), order=order)  # type: ignore[call-overload]

    zeros = empty

    def array(self, values: ArrayLike, dtype: Optional[DTypeLike] = None) -> NDArray[Any]:
        """A copy of `values`, managed."""
        source = np.asarray(values, dtype)
        copy = self.empty(source.shape, source.dtype)
        copy[...] = source
        return copy

    @contextlib.contextmanager
    def managed(self, least: Size = 65536) -> Iterator["Session"]:
        """Every array of `least` bytes and more that NumPy makes in this context is memory of this session (NEP 49).

        >>> import numpy as np, whimbrel
        >>> session = whimbrel.Session(ram="8M")
        >>> with session.managed():
        ...     a = np.arange(1 << 21)
        >>> whimbrel.session_of(a) is session
        True
        """
        before = self._core.use_for_numpy(_bytes(least, "least"), self)
        try:
            yield self
        finally:
            _core.set_numpy_handler(before)

    @contextlib.contextmanager
    def adopted(self, a: np.ndarray) -> Iterator[np.ndarray]:
        """Has the whole pages of an array from elsewhere managed for the duration of the block.

        They must be private anonymous memory, as large NumPy arrays are; what is away comes home at the end.

        >>> import numpy as np, whimbrel
        >>> a = np.full(1 << 21, 5)
        >>> with whimbrel.Session(ram="64M") as session, session.adopted(a):
        ...     out = session.migrate(a[4096:1 << 20])
        >>> out.moved > 1000, int(a.sum())
        (True, 10485760)
        """
        where = _range(a)
        self._core.adopt(*where)
        try:
            yield a
        finally:
            self._core.release(*where)

    # ---- hints ----

    def migrate(self, a: np.ndarray) -> Outcome:
        """To the device, now."""
        return Outcome._of(self._core.migrate(*_range(a)))

    def prefetch(self, a: np.ndarray, wait: bool = True) -> Union[Outcome, Request]:
        """Home, as far as the budget lets it. Without `wait`, a `Request` at once."""
        if wait:
            return Outcome._of(self._core.prefetch(*_range(a)))
        return Request(self._core.start_prefetch(*_range(a)))

    def migrate_later(self, a: np.ndarray) -> Request:
        """`migrate()` in the background."""
        return Request(self._core.start_migrate(*_range(a)))

    @contextlib.contextmanager
    def pin(self, a: np.ndarray) -> Iterator[Outcome]:
        """At home for the duration of the block; `Error` with ENOMEM when the budget has no room for it.

        >>> import whimbrel
        >>> session = whimbrel.Session(ram="8M")
        >>> a = session.array(range(100_000))
        >>> with session.pin(a):
        ...     session.migrate(a).reasons
        ('pinned',)
        """
        where = _range(a)
        outcome = Outcome._of(self._core.pin(*where))
        try:
            yield outcome
        finally:
            self._core.unpin(*where)

    def discard(self, a: np.ndarray) -> None:
        """The contents are of no use any more: whole pages of it read as zeros and take nothing."""
        if not (a.flags.c_contiguous or a.flags.f_contiguous):
            raise ValueError("only contiguous arrays can be discarded: what lies between the elements would be lost")
        self._core.discard(*_range(a))

    def advise(self, a: np.ndarray, advice: str) -> None:
        """How it will be used: "sequential", "random", "cold" (first to leave), or "normal" again.

        >>> import whimbrel
        >>> a = whimbrel.zeros(1 << 20, ram="4M")
        >>> whimbrel.advise(a, "random")
        >>> whimbrel.advise(a, "read-mostly")
        Traceback (most recent call last):
        whimbrel.Error: [Errno 95] whimbrel_advise (EOPNOTSUPP: read-mostly: no device keeps a copy of what is home); ...
        """
        if advice not in _ADVICE:
            raise ValueError(f"advice {advice!r}: one of {', '.join(_ADVICE)}")
        self._core.advise(*_range(a), _ADVICE[advice])

    # ---- looking ----

    def residency(self, a: np.ndarray) -> NDArray[np.void]:
        """One entry for each page that the array touches, with the fields

        ``where`` (EMPTY, RESIDENT, AWAY, MOVING), ``order`` (9: part of a page of 2 MiB), ``rights`` (1 read, 2 write),
        ``flags`` (1: pinned).

        >>> import numpy as np, whimbrel
        >>> session = whimbrel.Session(ram="8M")
        >>> a = session.zeros(4096)                       # 8 pages
        >>> a[:1024] = 1                                  # 2 of them written
        >>> out = session.migrate(a[:512])
        >>> [int(n) for n in session.residency(a)["where"][:2]] == [whimbrel.AWAY, whimbrel.RESIDENT]
        True
        """
        return self._core.residency(*_range(a))

    def stats(self) -> Dict[str, int]:
        """Numbers: pages of 4096 bytes, bytes and nanoseconds, as their names say."""
        return self._core.stats()

    @property
    def rung(self) -> str:
        """By which means memory is managed: ``"userfaultfd"``, or ``"guarded arenas"`` where that is not to be had."""
        return self._core.rung()

    def notice(self) -> str:
        """The last thing the engine had to tell a person, or nothing."""
        return self._core.notice()

    def set_budget(self, ram: Optional[Size] = None, total: Optional[Size] = None) -> None:
        """Another budget, now; what is too much leaves in the background."""
        self._core.set_budget(_bytes(ram, "ram"), _bytes(total, "total"))

    def set_device(self, device: str) -> None:
        """Another device. What is away moves there in the background; ``stats()["leaving_pages"]`` is 0 when all has.

        >>> import time
        >>> session = Session(ram="2M", device="lz4")
        >>> a = session.zeros(1 << 20)
        >>> a[:] = 1
        >>> session.set_device("zstd")
        >>> while session.stats()["leaving_pages"]:
        ...     time.sleep(0.01)
        >>> float(a.sum())
        1048576.0
        """
        self._core.set_device(device)
        self.device = device

    def owns(self, a: np.ndarray) -> bool:
        return self._core.owns(_range(a)[0])


_lock = threading.Lock()
_creation = threading.RLock()
_live: "weakref.WeakSet[Session]" = weakref.WeakSet()
_shared: Dict[Tuple[int, int, str], "weakref.ref[Session]"] = {}


def _shared_session(ram: Optional[Size], total: Optional[Size], device: str) -> Session:
    key = (_bytes(ram, "ram"), _bytes(total, "total"), device)
    known = _shared.get(key)
    session = known() if known is not None else None
    if session is None:
        session = Session(ram, total, device)
        _shared[key] = weakref.ref(session)
    return session


def session_of(a: np.ndarray) -> Session:
    """The session that an array, or a view of one, belongs to."""
    start = _range(a)[0]
    with _lock:
        sessions = list(_live)
    for session in sessions:
        if session._core.owns(start):
            return session
    raise ValueError("this array is not managed by whimbrel: make it with whimbrel.empty(), zeros() or array()")


def empty(shape: Shape, dtype: DTypeLike = float, order: str = "C", *, ram: Optional[Size] = None,
          total: Optional[Size] = None, device: str = "zstd") -> NDArray[Any]:
    """A new array in a session with that budget and device; arrays with the same ones share it.

    >>> import whimbrel
    >>> a = whimbrel.empty((1000, 1000), "f4", ram="16M")
    >>> b = whimbrel.empty(10, ram="16M")
    >>> whimbrel.session_of(a) is whimbrel.session_of(b)
    True
    """
    with _creation:
        return _shared_session(ram, total, device).empty(shape, dtype, order)


def zeros(shape: Shape, dtype: DTypeLike = float, order: str = "C", *, ram: Optional[Size] = None,
          total: Optional[Size] = None, device: str = "zstd") -> NDArray[Any]:
    """As `empty()`: fresh memory is zero."""
    return empty(shape, dtype, order, ram=ram, total=total, device=device)


def array(values: ArrayLike, dtype: Optional[DTypeLike] = None, *, ram: Optional[Size] = None,
          total: Optional[Size] = None, device: str = "zstd") -> NDArray[Any]:
    """A managed copy of `values`.

    >>> import whimbrel
    >>> whimbrel.array([[1, 2], [3, 4]], ram="4M")
    array([[1, 2],
           [3, 4]])
    """
    with _creation:
        return _shared_session(ram, total, device).array(values, dtype)


def migrate(a: np.ndarray) -> Outcome:
    """`Session.migrate()` of the array's session."""
    return session_of(a).migrate(a)


def prefetch(a: np.ndarray, wait: bool = True) -> Union[Outcome, Request]:
    """`Session.prefetch()` of the array's session.

    >>> import whimbrel
    >>> a = whimbrel.array(range(1 << 18), ram="16M")
    >>> whimbrel.migrate(a).refused
    0
    >>> coming = whimbrel.prefetch(a, wait=False)
    >>> coming.wait().refused, coming.done()
    (0, True)
    """
    return session_of(a).prefetch(a, wait)


def pin(a: np.ndarray) -> "contextlib.AbstractContextManager[Outcome]":
    """`Session.pin()` of the array's session."""
    return session_of(a).pin(a)


def discard(a: np.ndarray) -> None:
    """`Session.discard()` of the array's session."""
    session_of(a).discard(a)


def advise(a: np.ndarray, advice: str) -> None:
    """`Session.advise()` of the array's session."""
    session_of(a).advise(a, advice)


def residency(a: np.ndarray) -> NDArray[np.void]:
    """`Session.residency()` of the array's session."""
    return session_of(a).residency(a)


def stats(a: np.ndarray) -> Dict[str, int]:
    """`Session.stats()` of the array's session."""
    return session_of(a).stats()
