"""PyTorch modules in a job.

    import quorate, quorate.torch

    job = network.create_job("cnn", quorate.torch.arrays(net), **quorate.torch.roles(net), rounds=10, …)

    for task in job.tasks():
        quorate.torch.load(net, task.model)
        examples = train(net, **task.config)
        task.submit(weights=quorate.torch.weights(net), examples=examples)

What becomes of a module's state (what its `state_dict()` holds):

    parameters                        averaged; frozen if they do not require gradients
    floating buffers                  averaged (running means and variances), or local: `buffers="local"`
    integer and boolean buffers       local: num_batches_tracked, position_ids
    tied tensors                      one tensor, under the first of their names
    empty tensors, extra state        left where they are

Local tensors are in the module of each member and nowhere else. With `train=["*.lora_*"]` only floating tensors of such
names are averaged, all others are frozen: carried along in every model of the job, byte for byte. `untrained="local"`
leaves these out of its models, where each member has them from elsewhere, as a base that everybody has downloaded.

Averaged tensors are float32 on the chain. A module in bfloat16 or float16 is exported exactly, one in float64 rounded
to the nearest; loading rounds to the nearest value of the module's own dtype, on its own device. A module that trains
in 16 bits loses small changes to the rounding, so keep parameters in float32 and compute in 16 bits under autocast.

Arrays share memory with the module where that is possible, and are read-only: a module of float32 on the CPU is not
copied. They change when the module does; copy what is to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.client.adapters.faults import check_name, missing_package, missing_tensor, unknown_tensor, wrong_shape
from fl.client.apps import Measured, Trained
from fl.client.errors import BadInput
from fl.client.jobdraft import Arrays, ConfigValue
from fl.client.partition import SEED

Module = Any
Tensor = Any


def arrays(module: Module) -> dict[str, NDArray[Any]]:
    """The module's state by name: the model that a job starts from, for `create_job(name, arrays(module), …)`."""
    found = _tensors(module)
    for tied in found:
        check_name(tied.name, tuple(tied.tensor.shape))
    return {tied.name: _exported(tied.tensor) for tied in found}


def roles(
    module: Module, *, train: Sequence[str] | None = None, buffers: str = "averaged", untrained: str = "frozen"
) -> dict[str, list[str]]:
    """Which tensors are `frozen` and which are `local`, for `create_job(…, **roles(module))`; the others are averaged.

    `train` are patterns of names, as in "*.lora_*": nothing else is averaged. Without it that is what requires
    gradients, and buffers as `buffers` says ("averaged" or "local"). `untrained` tensors are "frozen" or "local"."""
    _check_choice("buffers", buffers, ("averaged", "local"))
    _check_choice("untrained", untrained, ("frozen", "local"))
    found = _tensors(module)
    for pattern in train or ():
        if not any(tied.matches([pattern]) for tied in found):
            raise BadInput("UNKNOWN_TENSOR", f"No tensor of the module is named as {pattern!r}.", "Check `train`.")
    by_role: dict[str, list[str]] = {"averaged": [], "frozen": [], "local": []}
    for tied in found:
        by_role[_role(tied, train, buffers, untrained)].append(tied.name)
    if not by_role["averaged"]:
        raise BadInput(
            "NOTHING_TO_TRAIN", "No tensor of the module would be averaged.", "Check requires_grad, `train`."
        )
    return {role: by_role[role] for role in ("frozen", "local")}


def load(module: Module, arrays: Arrays, *, local: Sequence[str] = ()) -> None:
    """A task's arrays, into the module: in place, so that optimisers keep their hold of it.

    Every floating tensor has to be there, but for those that are local in the job: `local` are their names, or
    patterns of them. If anything does not fit, BadInput names it and the module stays as it was."""
    torch = _torch()
    found = _tensors(module)
    own = {name: tied for tied in found for name in tied.names}
    given = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in given.items():
        if name not in own:
            raise unknown_tensor(name, "The module")
        _check_fits(torch, name, array, own[name].tensor)
    for tied in found:
        here = [name for name in tied.names if name in given]
        if not here and tied.is_floating and not tied.matches(local):
            raise missing_tensor(tied.name, "Name in `local` what is local in the job.")
        for name in here[1:]:
            if not np.array_equal(given[name], given[here[0]]):
                raise BadInput(
                    "TIED_TENSORS", f"The tensors {here[0]!r} and {name!r} are one, and differ.", "Untie them."
                )
    with torch.no_grad():
        for name, array in given.items():
            own[name].tensor.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))
        _mend_variances(module)


def weights(module: Module, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """What to submit after training. Without `names` it is what `roles(module)` has averaged; in a job with other
    roles, give its own: `weights(module, job.averaged)`."""
    found = _tensors(module)
    if names is None:
        averaged = (tied for tied in found if _role(tied, None, "averaged", "frozen") == "averaged")
        return {tied.name: _exported(tied.tensor) for tied in averaged}
    own = {name: tied.tensor for tied in found for name in tied.names}
    wanted = list(names)
    for name in wanted:
        if name not in own:
            raise unknown_tensor(name, "The module")
    return {name: _exported(own[name]) for name in wanted}


def draft(
    factory: Callable[[], Module] | Module, **chosen: Any
) -> tuple[dict[str, NDArray[Any]], dict[str, list[str]]]:
    """Arrays and roles of a module, or of what a class or a function makes without arguments: all that a job file has
    to know of it. `chosen` is what `roles` takes."""
    module = factory if isinstance(factory, _torch().nn.Module) else _made(factory)
    return arrays(module), roles(module, **chosen)


class Proximal:
    """FedProx: mu / 2 times the squared distance from where the round began, to be added to the loss. Make it after
    `load`; a job gives mu in its config.

    term = Proximal(net, task.config["mu"])
    loss = cross_entropy(net(x), y) + term()
    """

    def __init__(self, module: Module, mu: float) -> None:
        if not (mu >= 0 and math.isfinite(mu)):
            raise BadInput("BAD_CONFIG", f"FedProx has no mu of {mu!r}.", "Give 0 or more.")
        self._mu = mu
        trained = (each for each in _unwrapped(module).parameters() if each.requires_grad and mu > 0)
        self._pairs = [(each, each.detach().clone()) for each in trained]

    def __call__(self) -> Any:
        """The term, as a tensor."""
        squares = [(now - then).square().sum() for now, then in self._pairs]
        return self._mu / 2 * sum(squares, start=_torch().zeros(()))


_WIDE = 1e38
"""A dtype that reaches this far holds every float32 of a job."""

Work = Callable[[Module, Any, Mapping[str, ConfigValue]], tuple[int, Mapping[str, float]]]
"""What trains a module, or measures it, on a part of the data: examples and metrics."""


class TorchApp:
    """An app of a module and three functions, to be named in a job file as `package.module:object`.

        app = TorchApp(Net, data, train, evaluate)

        def data(): ...                          (x, y) to train on, (x, y) held out
        def train(net, data, config): ...        changes the net; gives the number of examples and metrics
        def evaluate(net, data): ...             gives the number of examples and metrics

    `module()` makes the module, without arguments; PyTorch's random numbers start from `[model] seed` there, and from
    the round's own in `train`. `chosen` is what `roles` takes, and the job has to have these roles: `draft(module,
    **chosen)` tells them. Tensors that are local stay with a part of the data while the process runs. `parts` deals out
    data that is not rows, as fl/client/apps.py says."""

    def __init__(
        self,
        module: Callable[[], Module],
        data: Callable[[], tuple[Any, Any]],
        train: Work,
        evaluate: Callable[[Module, Any], Measured],
        *,
        parts: Callable[[int, np.random.Generator], Sequence[Any]] | None = None,
        **chosen: Any,
    ) -> None:
        self._module = module
        self._train = train
        self._evaluate = evaluate
        self._chosen = chosen
        self._nets: dict[int, tuple[Module, Any]] = {}
        self.data = data
        if parts is not None:
            self.parts = parts

    def model(self, seed: int = SEED) -> Arrays:
        """The initial model."""
        return arrays(self._seeded(seed))

    def roles(self) -> dict[str, list[str]]:
        """Which tensors are frozen and local, for the job."""
        return roles(self._seeded(SEED), **self._chosen)

    def train(
        self, model: Arrays, data: Any, config: Mapping[str, ConfigValue], chance: np.random.Generator
    ) -> Trained:
        """What the function `train` makes of the model."""
        net, own = self._loaded(model, data)
        _torch().manual_seed(int(chance.integers(2**63)))
        net.train()
        examples, metrics = self._train(net, data, config)
        aside = {*own["frozen"], *own["local"]}
        return weights(net, [name for name in model if name not in aside]), examples, metrics

    def evaluate(self, model: Arrays, data: Any) -> Measured:
        """What the function `evaluate` finds."""
        net, _ = self._loaded(model, data)
        net.eval()
        with _torch().no_grad():
            return self._evaluate(net, data)

    def _loaded(self, model: Arrays, part: Any) -> tuple[Module, dict[str, list[str]]]:
        """A module with this model in it, and its roles. Where training changes what is local, each part has its
        own."""
        place = id(part) if self._is_personal else 0
        if place not in self._nets:
            self._nets[place] = (self._seeded(SEED), part)
        net, _ = self._nets[place]
        own = roles(net, **self._chosen)
        load(net, model, local=own["local"])
        return net, own

    @cached_property
    def _is_personal(self) -> bool:
        net = self._seeded(SEED)
        local = set(roles(net, **self._chosen)["local"])
        changing = (
            each for each in _tensors(net) if each.is_floating and (not each.is_parameter or each.requires_grad)
        )
        return any(each.name in local for each in changing)

    def _seeded(self, seed: int) -> Module:
        torch = _torch()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _made(self._module)


# What a module holds


@dataclass(frozen=True, slots=True)
class _Tied:
    """A tensor, under all of its names."""

    names: tuple[str, ...]
    tensor: Tensor
    is_parameter: bool

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def requires_grad(self) -> bool:
        return bool(self.tensor.requires_grad)

    @property
    def is_floating(self) -> bool:
        return bool(self.tensor.is_floating_point())

    def matches(self, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in self.names for pattern in patterns)


def _role(tied: _Tied, train: Sequence[str] | None, buffers: str, untrained: str) -> str:
    if not tied.is_floating:
        return "local"
    if train is not None:
        return "averaged" if tied.matches(train) else untrained
    if tied.is_parameter:
        return "averaged" if tied.requires_grad else untrained
    return buffers


def _tensors(module: Module) -> list[_Tied]:
    """In the module's own order."""
    torch = _torch()
    inner = _unwrapped(module)
    by_place: dict[tuple[Any, ...], list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in inner.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            continue
        _check_kind(torch, name, tensor)
        if tensor.numel():
            by_place.setdefault(_place(tensor), []).append(name)
            tensors[name] = tensor
    found = [
        _Tied(tuple(names), tensors[names[0]], any(isinstance(tensors[each], torch.nn.Parameter) for each in names))
        for names in by_place.values()
    ]
    _check_apart(found)
    return found


def _place(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()
    where = (tensor.device, storage.data_ptr(), tensor.storage_offset())
    return (*where, tensor.dtype, tuple(tensor.shape), tensor.stride())


def _check_kind(torch: Any, name: str, tensor: Tensor) -> None:
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
        raise BadInput(
            "BAD_MODEL", f"The tensor {name!r} has no values yet.", "Give the module a first batch, or load it."
        )
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        raise BadInput(
            "BAD_MODEL", f"The tensor {name!r} is {tensor.dtype}, {tensor.layout}.", "Use dense real numbers."
        )


def _check_apart(found: Sequence[_Tied]) -> None:
    """Two tensors that share some of their memory, and not all, could be given different values for it."""
    spans: dict[tuple[Any, int], list[tuple[int, int, str]]] = {}
    for tied in found:
        tensor = tied.tensor
        start = tensor.storage_offset() * tensor.element_size()
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        stop = start + (reach + 1) * tensor.element_size()
        storage = tensor.untyped_storage().data_ptr()
        spans.setdefault((tensor.device, storage), []).append((start, stop, tied.name))
    for shared in spans.values():
        shared.sort()
        for (_, stop, one), (start, _, other) in pairwise(shared):
            if start < stop:
                raise BadInput(
                    "TIED_TENSORS",
                    f"The tensors {one!r} and {other!r} share a part of their memory.",
                    "Tie whole tensors, or none.",
                )


def _check_fits(torch: Any, name: str, array: NDArray[Any], tensor: Tensor) -> None:
    if array.shape != tuple(tensor.shape):
        raise wrong_shape(name, array.shape, tuple(tensor.shape))
    if (array.dtype.kind == "f") != tensor.is_floating_point():
        raise BadInput(
            "WRONG_DTYPE", f"The tensor {name!r} is {array.dtype}, and in the module {tensor.dtype}.", "Check it."
        )
    if tensor.is_floating_point() and torch.finfo(tensor.dtype).max < _WIDE:
        largest = float(np.abs(array).max())
        if largest > torch.finfo(tensor.dtype).max:
            raise BadInput(
                "OUT_OF_RANGE", f"The tensor {name!r} holds {largest:g}, too large for {tensor.dtype}.", "Use bfloat16."
            )


def _mend_variances(module: Module) -> None:
    """A lossy encoding, or a rule with momentum, may have made one negative, and its root is no number."""
    for each in _unwrapped(module).modules():
        variance = getattr(each, "running_var", None)
        if isinstance(variance, _torch().Tensor):
            variance.clamp_(min=0)


def _exported(tensor: Tensor) -> NDArray[Any]:
    torch = _torch()
    here = tensor.detach().cpu()
    if here.is_floating_point() and here.dtype not in (torch.float16, torch.float32, torch.float64):
        here = here.float()
    array: NDArray[Any] = here.numpy()
    array.flags.writeable = False
    return array


def _unwrapped(module: Module) -> Module:
    """Compiled and parallel modules hold the one that was written, and prefix its names."""
    torch = _torch()
    if not isinstance(module, torch.nn.Module):
        raise BadInput("NO_MODULE", f"{type(module).__name__} is no torch.nn.Module.", "Give the module itself.")
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(module, parallel):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def _made(factory: Callable[[], Module]) -> Module:
    try:
        return factory()
    except TypeError as error:
        raise BadInput(
            "BAD_MODEL", f"The module cannot be made: {error}.", "Name a class, or a function, without arguments."
        ) from error


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise BadInput("WRONG_TYPE", f"`{name}` is {given!r}.", f"There are: {', '.join(known)}.")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise missing_package("PyTorch", "torch") from None
    return torch
