"""The registry of techniques: the `technique` decorator, and the stream of Frames that a technique returns."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from types import FrameType
from typing import Annotated, Any, Concatenate, ParamSpec, TypeAlias, cast, get_origin, overload

from .errors import did_you_mean
from .knob import Knob, get_knobs
from .network.modes import full_precision, plain_mode
from .network.network import Network
from .runs.frame import Frame
from .types import NetworkLike

P = ParamSpec("P")

TECHNIQUES: dict[str, Callable[..., FrameStream]] = {}
"""All techniques by name."""


class FrameStream(Generator[Frame, "dict[str, Any] | None", None]):
    """The Frames of a technique: a generator that checks the values sent to it.

    Values of live knobs can be sent at any time, also before the first Frame. A name that is not a live knob or a value out
    of range raises ValueError and leaves the computation unchanged.
    """

    def __init__(
        self,
        generator: Generator[Frame, dict[str, Any] | None, None],
        name: str,
        knobs: Mapping[str, Knob],
        allow_tf32: bool = False,
    ) -> None:
        self._generator, self.name, self._allow_tf32 = generator, name, allow_tf32
        self._knobs = knobs
        self._pending: dict[str, Any] = {}
        self._started = False

    def check(self, values: dict[str, Any]) -> None:
        """Raise ValueError unless all keys are live knobs and all values are in range."""
        live = {name: knob for name, knob in self._knobs.items() if knob.live}
        for name, value in values.items():
            if name not in live:
                raise ValueError(f"{self.name} has no live knob {name!r}; it has {', '.join(live) or 'none'}")
            live[name].check(name, value)

    def send(self, values: dict[str, Any] | None) -> Frame:
        """Compute the next Frame, with new values of live knobs if given."""
        if values:
            self.check(values)
            self._pending.update(values)
        with plain_mode(), full_precision(not self._allow_tf32):
            if not self._started:  # the first send to a generator must be None; the values wait for the second
                self._started = True
                return next(self._generator)
            pending, self._pending = self._pending, {}
            return self._generator.send(pending or None)

    @property
    def gi_frame(self) -> FrameType | None:
        """None after the end of the computation, as for every generator."""
        return cast(FrameType | None, getattr(self._generator, "gi_frame", None))

    def throw(self, *args: Any) -> Frame:
        """Raise an exception inside the computation."""
        return self._generator.throw(*args)

    def close(self) -> None:
        """End the computation; it removes its hooks."""
        self._generator.close()

    def __repr__(self) -> str:
        return f"<frames of {self.name}>"

    def __getattr__(self, name: str) -> Any:
        if name in ("image", "heat", "scalars", "arrays"):  # attributes of a Frame
            raise AttributeError(f"nothing is computed yet; the last Frame has it: Run({self.name}(...)).run().{name}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


TechniqueFunction: TypeAlias = Callable[Concatenate[Network, P], Iterator[Frame]]
StreamFunction: TypeAlias = Callable[Concatenate[NetworkLike, P], FrameStream]


@overload
def technique(function: TechniqueFunction[P], /) -> StreamFunction[P]: ...
@overload
def technique(*, allow_tf32: bool) -> Callable[[TechniqueFunction[P]], StreamFunction[P]]: ...
def technique(function: Any = None, /, *, allow_tf32: bool = False) -> Any:
    """Decorate a generator function as a technique and add it to `TECHNIQUES`.

    Its first argument is converted by `Network.ensure`. Its knobs are checked when it is called, not at the first step.

    Parameters
    ----------
    function : generator function
    allow_tf32 : bool
        Whether a GPU may compute in TF32, if PyTorch is set so, as for synthesized images; otherwise steps are computed in
        full float32.

    Examples
    --------
    >>> import torch
    >>> from typing import Annotated
    >>> @technique
    ... def brightness(net: Network, image: Any, *, gain: Annotated[float, Knob(0, 9)] = 1.0) -> Iterator[Frame]:
    ...     yield Frame(1, 1, done=True, scalars={"brightness": gain * float(net.image(image).mean())})
    >>> next(brightness("demo", torch.ones(3, 64, 64), gain=2.0)).scalars["brightness"]
    2.0
    >>> _ = TECHNIQUES.pop("brightness")
    """
    return functools.partial(_register, allow_tf32=allow_tf32) if function is None else _register(function, allow_tf32)


def _register(function: TechniqueFunction[P], allow_tf32: bool) -> StreamFunction[P]:
    signature, knobs = inspect.signature(function), get_knobs(function)

    @functools.wraps(function)
    def create_stream(net: NetworkLike, *args: P.args, **kwargs: P.kwargs) -> FrameStream:
        for name, value in kwargs.items():
            if name not in signature.parameters:
                raise TypeError(f"{function.__name__} has no knob {name!r}; {did_you_mean(name, signature.parameters)}")
            if name in knobs:
                knobs[name].check(name, value)
        signature.bind(net, *args, **kwargs)
        # generator functions are usually annotated as returning an Iterator
        generator = cast(Generator[Frame, Any, None], function(Network.ensure(net), *args, **kwargs))
        return FrameStream(generator, function.__name__, knobs, allow_tf32)

    create_stream.__signature__ = _plain_signature(signature)  # type: ignore[attr-defined]
    TECHNIQUES[function.__name__] = create_stream
    return create_stream


class _Annotation(str):
    """An annotation that is shown without quotes."""

    __repr__ = str.__str__


def _plain_signature(signature: inspect.Signature) -> inspect.Signature:
    """The signature for help and completion: ``samples: int`` instead of ``samples: 'Annotated[int, Knob(1, 512)]'``."""
    first, *others = signature.parameters.values()
    parameters = [first.replace(annotation=_Annotation("NetworkLike"))]
    parameters += [parameter.replace(annotation=_plain(parameter.annotation)) for parameter in others]
    return inspect.Signature(parameters, return_annotation=_Annotation("FrameStream"))


def _plain(annotation: Any) -> Any:
    """An annotation without its Knob."""
    if not isinstance(annotation, str):
        return annotation.__origin__ if get_origin(annotation) is Annotated else annotation
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and ast.unparse(node.value) == "Annotated":
        return _Annotation(ast.unparse(node.slice.elts[0]))
    return _Annotation(annotation)


def get_technique(name: str) -> Callable[..., FrameStream]:
    """A technique by name, "grad_cam" or "grad-cam"; ValueError with similar names if it does not exist."""
    key = name.lower().replace("-", "_").replace(" ", "_")
    if key not in TECHNIQUES:
        raise ValueError(f"there is no technique {name!r}; {did_you_mean(key, TECHNIQUES)}")
    return TECHNIQUES[key]
