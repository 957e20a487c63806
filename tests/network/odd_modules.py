"""Modules that are unusual to copy, by name. Each is a function without arguments that makes the same module every time."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import itertools
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

ODD_MODULES: dict[str, Callable[[], nn.Module]] = {}


def odd(name: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def seeded() -> nn.Module:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return make()

        ODD_MODULES[name] = seeded
        return make

    return register


class Plain(nn.Module):
    """Convolution, batch norm, ReLU, convolution, mean, linear; in training mode, with statistics."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.middle = nn.Identity() if middle is None else middle
        self.b, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)
        self.norm.running_mean.normal_()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * self.b(self.middle(self.norm(self.a(x)).relu())).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def after_a_pass(module: nn.Module) -> nn.Module:
    module(torch.rand(2, 3, 16, 16, requires_grad=True))
    return module


class Record:
    def __init__(self) -> None:
        self.last: Any = None


@odd("keeps its scores in an object")
def _() -> nn.Module:
    class Keeps(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.record = Record()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.record.last = super().forward(x)
            return self.record.last

    return after_a_pass(Keeps())


@odd("keeps activations in a dataclass, a deque and a dict of lists")
def _() -> nn.Module:
    @dataclasses.dataclass
    class Kept:
        tensors: dict[str, list[torch.Tensor]] = dataclasses.field(default_factory=lambda: {"all": []})
        queue: collections.deque[torch.Tensor] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=2))

    class Keeps(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.kept = Kept()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.features(x)
            self.kept.tensors["all"].append(y)
            self.kept.queue.append(y)
            return self.fc(y.mean((2, 3)))

    return after_a_pass(Keeps())


@odd("keeps an activation in a closure")
def _() -> nn.Module:
    class Keeps(Plain):
        def __init__(self) -> None:
            super().__init__()
            last = None

            def keep(y: torch.Tensor) -> torch.Tensor:
                nonlocal last
                last = y
                return y

            self.keep, self.kept = keep, lambda: last

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.keep(x * 2) / 2)

    return after_a_pass(Keeps())


@odd("an object with slots, and an object that is the module's reader")
def _() -> nn.Module:
    class Slots:
        __slots__ = ("last", "owner")

    class Keeps(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.slots = Slots()
            self.slots.owner = self

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.slots.last = self.slots.owner.features(x)
            return self.fc(self.slots.last.mean((2, 3)))

    return after_a_pass(Keeps())


@odd("weights made in inference mode")
def _() -> nn.Module:
    with torch.inference_mode():
        return Plain()


@odd("forward is a partial")
def _() -> nn.Module:
    def scaled(self: Plain, scale: float, x: torch.Tensor) -> torch.Tensor:
        return scale * Plain.forward(self, x)

    module = Plain()
    module.forward = functools.partial(scaled, module, 2.0)
    return module


@odd("forward is a bound method")
def _() -> nn.Module:
    module = Plain()
    module.forward = types.MethodType(lambda self, x: 2 * Plain.forward(self, x), module)
    return module


@odd("forward is chosen in the constructor")
def _() -> nn.Module:
    class Chooses(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.forward = self.doubled

        def doubled(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(2 * self.features(x).mean((2, 3)))

    return Chooses()


@odd("forward wraps the forward before in a closure")
def _() -> nn.Module:
    module = Plain()
    for part in (module, module.b):
        forward = part.forward
        part.forward = lambda x, forward=forward: 2 * forward(x)  # a default, not a variable
        again = part.forward

        @functools.wraps(again)
        def wrapped(x: torch.Tensor, again: Any = again) -> torch.Tensor:
            return again(x) + 1

        part.forward = wrapped
    return module


@odd("forward of a part is a closure over the module")
def _() -> nn.Module:
    module = Plain()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * module.fc.weight.mean() + module.norm.running_mean.mean()

    module.middle.forward = forward
    return module


@odd("weight norm of both kinds")
def _() -> nn.Module:
    module = Plain()
    torch.nn.utils.weight_norm(module.a)
    parametrizations.weight_norm(module.b)
    return after_a_pass(module)


@odd("pruning")
def _() -> nn.Module:
    module = Plain()
    prune.l1_unstructured(module.a, "weight", 0.5)
    prune.random_structured(module.b, "weight", 0.3, dim=0)
    return after_a_pass(module)


@odd("spectral norm of both kinds")
def _() -> nn.Module:
    module = Plain()
    torch.nn.utils.spectral_norm(module.a)
    parametrizations.spectral_norm(module.b)
    return after_a_pass(module)


@odd("a parametrization of its own")
def _() -> nn.Module:
    class Symmetric(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return (weight + weight.flip(3)) / 2

    module = Plain()
    parametrize.register_parametrization(module.b, "weight", Symmetric())
    return module


@odd("tied weights")
def _() -> nn.Module:
    module = Plain(nn.Conv2d(6, 6, 3, padding=1))
    module.middle.weight = module.b.weight
    module.again = module.b
    return module


@odd("lazy modules that have run")
def _() -> nn.Module:
    module = Plain(nn.Sequential(nn.LazyConv2d(6, 1), nn.LazyBatchNorm2d()))
    return after_a_pass(module)


@odd("a lock, a file, a generator, a thread-local and a stream of numbers")
def _() -> nn.Module:
    class Holds(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.file, self.generator = threading.Lock(), io.TextIOWrapper(io.BytesIO()), torch.Generator()
            self.local, self.numbers = threading.local(), (i for i in itertools.count())
            self.holder = Record()
            self.holder.lock, self.holder.calls = threading.RLock(), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.lock, self.holder.lock:
                self.holder.calls.append(x)
                return super().forward(x)

    return Holds()


@odd("__deepcopy__ returns the module")
def _() -> nn.Module:
    class Single(Plain):
        def __deepcopy__(self, memo: dict[int, Any]) -> Single:
            return self

    return nn.Sequential(Single())


@odd("cannot be pickled or copied")
def _() -> nn.Module:
    class Refuses(Plain):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise NotImplementedError("not this one")

        def __getstate__(self) -> Any:
            raise NotImplementedError("not this one")

        def __deepcopy__(self, memo: Any) -> Any:
            raise NotImplementedError("not this one")

    return Refuses()


@odd("arguments of __new__ and slots")
def _() -> nn.Module:
    class New(Plain):
        __slots__ = ("factor",)

        def __new__(cls, factor: float) -> New:
            return super().__new__(cls)

        def __init__(self, factor: float) -> None:
            super().__init__()
            object.__setattr__(self, "factor", factor)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * super().forward(x)

    return New(3.0)


@odd("parts that refer to their parent in three ways")
def _() -> nn.Module:
    class Child(nn.Module):
        def __init__(self, parent: Any) -> None:
            super().__init__()
            self.__dict__["parent"] = parent

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parent = self.parent() if isinstance(self.parent, weakref.ref) else self.parent
            return x + parent.norm.running_mean.mean() + parent.b(x)

    module = Plain()
    module.middle = nn.Sequential(Child(module), Child(weakref.ref(module)), Child(weakref.proxy(module)))
    return module


@odd("DataParallel inside")
def _() -> nn.Module:
    return Plain(nn.DataParallel(nn.Conv2d(6, 6, 1)))


@odd("compiled parts, a compiled forward and a compiled call")
def _() -> nn.Module:
    module = Plain(torch.compile(nn.Conv2d(6, 6, 1), backend="eager"))
    module.b.forward = torch.compile(module.b.forward, backend="eager")
    module.compile(backend="eager")
    return module


@odd("scripted part")
def _() -> nn.Module:
    return Plain(torch.jit.script(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout())))


@odd("traced part")
def _() -> nn.Module:
    part = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 1)))
    return Plain(torch.jit.trace(part, torch.rand(1, 6, 16, 16)))


@odd("frozen scripted part")
def _() -> nn.Module:
    return Plain(torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU())).eval()))


@odd("torch.fx inside")
def _() -> nn.Module:
    return nn.Sequential(torch.fx.symbolic_trace(Plain()), torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4))))


@odd("counts its passes in a buffer and a list")
def _() -> nn.Module:
    class Counts(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("passes", torch.zeros(1))
            self.register_buffer("doubled", torch.ones(1))
            self.sizes: list[int] = []
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            self.doubled = self.doubled * 2
            self.sizes.append(len(x))
            self.calls += 1
            return super().forward(x)

    return Counts()


@odd("modules and weights in lists")
def _() -> nn.Module:
    class Hides(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)]
            self.functions = {"a": self.hidden[0].forward, "b": self.b.forward}
            self.scales = [nn.Parameter(torch.rand(1)), torch.rand(1)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.hidden[1].eval()(self.functions["a"](self.norm(self.a(x)).relu()))
            return self.fc((self.scales[0] * self.functions["b"](y) * self.scales[1]).mean((2, 3)))

    return Hides()


@odd("recurrent")
def _() -> nn.Module:
    class Rows(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 6, 2, batch_first=True, dropout=0.5)
            self.gru = nn.GRU(6, 6, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.lstm(self.features(x).mean(2).transpose(1, 2))
            return self.fc(self.gru(y)[1][-1])

    return Rows()


@odd("hooks of its user")
def _() -> nn.Module:
    module = Plain()
    seen = []
    module.b.register_forward_hook(lambda _module, _args, output: seen.append(output))
    module.register_forward_pre_hook(lambda m, _args: seen.append(m.a))
    module.seen = seen
    return module
