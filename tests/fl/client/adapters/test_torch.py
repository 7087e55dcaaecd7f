from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import quorate.torch
from fl.client.apps import answered_group, holdings
from fl.client.errors import BadInput
from fl.client.jobdraft import draft_job
from fl.client.partition import Partition
from fl.tensors.model import parse_model
from fl.updates import form_of

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

RULES: dict[str, Any] = {"rounds": 1, "target": 1, "privacy": "visible-to-validators"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight


class Lora(nn.Module):
    """A frozen linear map, and what is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(32, 16)
        self.lora_a = nn.Parameter(torch.randn(2, 32))
        self.lora_b = nn.Parameter(torch.zeros(16, 2))
        self.base.requires_grad_(False)


def state(module: Any) -> dict[str, Any]:
    return {name: each.clone() for name, each in module.state_dict().items()}


def through_a_job(module: Any, **chosen: Any) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """The rules of a job that starts from the module, and the arrays of a task of it."""
    arrays, roles = quorate.torch.draft(module, **chosen)
    drafted = draft_job("job", arrays, **RULES, **roles)
    return drafted.rules, dict(parse_model(drafted.rules.schema, drafted.model))


def refused(code: str, named: str, act: Any, *given: Any, **more: Any) -> None:
    with pytest.raises(BadInput) as error:
        act(*given, **more)
    assert error.value.code == code and named in error.value.what


# Roles


def test_counters_are_local_and_everything_that_floats_is_averaged() -> None:
    net = Net()
    assert quorate.torch.roles(net) == {"frozen": [], "local": ["norm.num_batches_tracked"]}
    rules, model = through_a_job(net)
    assert {each.name: each.role for each in rules.schema.tensors} == {
        **dict.fromkeys(
            ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"), "averaged"
        ),
        **dict.fromkeys(("norm.running_mean", "norm.running_var"), "averaged"),
        "norm.num_batches_tracked": "local",
    }
    assert model.keys() == quorate.torch.weights(net).keys()


def test_running_statistics_may_stay_with_each_member() -> None:
    net = Net()
    own = quorate.torch.roles(net, buffers="local")
    assert own["local"] == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    _, model = through_a_job(net, buffers="local")
    net.norm.running_mean.fill_(5.0)
    refused("MISSING_TENSOR", "norm.running_mean", quorate.torch.load, net, model)
    quorate.torch.load(net, model, local=own["local"])
    quorate.torch.load(net, model, local=["*.running_*"])
    assert (net.norm.running_mean == 5.0).all(), "what is local is left alone"
    assert quorate.torch.weights(net, model).keys() == model.keys()


def test_what_needs_no_gradient_is_frozen() -> None:
    net = Lora()
    assert quorate.torch.roles(net) == {"frozen": ["base.weight", "base.bias"], "local": []}
    assert quorate.torch.weights(net).keys() == {"lora_a", "lora_b"}
    assert quorate.torch.roles(net, untrained="local") == {"frozen": [], "local": ["base.weight", "base.bias"]}


def test_an_update_of_adapters_holds_adapters_only() -> None:
    net = Lora()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    whole, _ = through_a_job(net)
    rules, model = through_a_job(net, train=["lora_*"])
    full, small = (form_of(each, 0).layout for each in (whole, rules))
    assert [each.name for each in small.segments] == ["lora_a", "lora_b"]
    assert small.parameters == 96 and full.parameters == 96 + 32 * 16 + 16
    assert model["base.weight"].shape == (16, 32), "the base is in the model, as it was"
    _, bare = through_a_job(net, train=["lora_*"], untrained="local")
    assert bare.keys() == {"lora_a", "lora_b"}
    number, given = answered_group(rules, quorate.torch.weights(net, ["lora_a", "lora_b"]))
    assert number == 0 and given.keys() == {"lora_a", "lora_b"}


@pytest.mark.parametrize(
    ("chosen", "code"),
    [
        ({"train": ["lora_c"]}, "UNKNOWN_TENSOR"),
        ({"train": []}, "NOTHING_TO_TRAIN"),
        ({"buffers": "frozen"}, "WRONG_TYPE"),
        ({"untrained": "averaged"}, "WRONG_TYPE"),
    ],
)
def test_choices_that_mean_nothing_are_refused(chosen: dict[str, Any], code: str) -> None:
    refused(code, "", quorate.torch.roles, Lora(), **chosen)


def test_a_frozen_tensor_keeps_its_bytes() -> None:
    net = Lora()
    net.base.double()
    rules, model = through_a_job(net)
    assert {each.name: each.dtype for each in rules.schema.tensors}["base.weight"] == "F64"
    before = state(net)
    net.base.weight.zero_()
    quorate.torch.load(net, model)
    assert torch.equal(net.base.weight, before["base.weight"])


# Values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_module_comes_back_exactly(dtype: Any) -> None:
    torch.manual_seed(1)
    net, other = Net().to(dtype), Net().to(dtype)
    _, model = through_a_job(net)
    assert all(array.dtype == np.float32 for array in model.values())
    quorate.torch.load(other, model)
    counted = "norm.num_batches_tracked"
    for name, tensor in state(net).items():
        assert name == counted or torch.equal(other.state_dict()[name], tensor)
        assert other.state_dict()[name].dtype == tensor.dtype


def test_a_module_of_float64_is_rounded_to_float32_for_the_chain_and_submitted_as_it_is() -> None:
    net = nn.Linear(3, 2).double()
    with torch.no_grad():
        net.weight.fill_(1 / 3)
    _, model = through_a_job(net)
    assert (model["weight"] == np.float32(1 / 3)).all()
    assert (quorate.torch.weights(net)["weight"] == 1 / 3).all()
    quorate.torch.load(net, model)
    assert (net.weight == float(np.float32(1 / 3))).all()


def test_loading_rounds_to_the_modules_own_dtype() -> None:
    net = nn.Linear(1, 1).bfloat16()
    quorate.torch.load(net, {"weight": np.full((1, 1), 1.00390625, np.float32), "bias": np.zeros(1, np.float32)})
    assert net.weight.item() == 1.0, "bfloat16 has eight bits; ties go to even"


def test_a_value_that_float16_cannot_hold_is_refused() -> None:
    given = {"weight": np.full((1, 1), 1e5, np.float32), "bias": np.zeros(1, np.float32)}
    refused("OUT_OF_RANGE", "weight", quorate.torch.load, nn.Linear(1, 1).half(), given)


def test_an_optimiser_keeps_its_hold_of_a_module_that_is_loaded() -> None:
    net = nn.Linear(4, 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    quorate.torch.load(net, {name: np.zeros_like(array) for name, array in quorate.torch.arrays(net).items()})
    net(torch.ones(2, 4)).sum().backward()
    optimiser.step()
    assert (quorate.torch.weights(net)["weight"] == -2).all()


def test_memory_is_shared_where_it_can_be_and_read_only() -> None:
    net = Net()
    for name, array in (quorate.torch.arrays(net) | quorate.torch.weights(net)).items():
        assert array.__array_interface__["data"][0] == net.state_dict()[name].data_ptr()
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_arrays_in_another_memory_layout_are_the_same_numbers() -> None:
    net = Net().to(memory_format=torch.channels_last)
    _, model = through_a_job(net)
    assert np.array_equal(model["conv.weight"], net.conv.weight.detach().contiguous().numpy())
    quorate.torch.load(net, {name: array + 1 for name, array in model.items()})
    assert np.array_equal(net.conv.weight.detach().numpy(), model["conv.weight"] + 1)


def test_a_variance_that_rounding_made_negative_is_loaded_as_zero() -> None:
    net = Net()
    _, model = through_a_job(net)
    given = np.array([-0.2, 0.0, 0.3, 4.0], np.float32)
    quorate.torch.load(net, model | {"norm.running_var": given})
    assert net.norm.running_var.tolist() == [0.0, 0.0, given[2], given[3]]
    assert torch.isfinite(net.eval()(torch.ones(1, 1, 5, 5))).all()
    assert given[0] < 0, "what was given is not touched"


# Names


def test_tied_weights_are_one_tensor() -> None:
    net = Tied()
    assert list(quorate.torch.arrays(net)) == ["embed.weight"] == list(quorate.torch.weights(net))
    given = np.arange(28, dtype=np.float32).reshape(7, 4)
    quorate.torch.load(net, {"embed.weight": given})
    assert np.array_equal(net.out.weight.detach().numpy(), given) and net.out.weight is net.embed.weight


def test_a_job_may_have_either_name_of_tied_weights_or_both_if_they_are_equal() -> None:
    net, given = Tied(), np.ones((7, 4), np.float32)
    quorate.torch.load(net, {"out.weight": given})
    quorate.torch.load(net, {"out.weight": given, "embed.weight": given.copy()})
    both = quorate.torch.weights(net, ["out.weight", "embed.weight"])
    assert both.keys() == {"out.weight", "embed.weight"} and np.array_equal(*both.values())
    refused("TIED_TENSORS", "out.weight", quorate.torch.load, net, {"out.weight": given * 2, "embed.weight": given})
    assert (net.embed.weight == 1).all(), "nothing was loaded"


def test_tensors_that_share_a_part_of_their_memory_are_refused() -> None:
    net = nn.Module()
    net.one = nn.Parameter(torch.zeros(6))
    net.two = nn.Parameter(net.one.data[2:])
    refused("TIED_TENSORS", "one", quorate.torch.arrays, net)
    net.two = nn.Parameter(net.one.data.reshape(2, 3).t())
    refused("TIED_TENSORS", "two", quorate.torch.load, net, {})
    net.one, net.two = (nn.Parameter(each) for each in torch.zeros(6).split(3))
    assert list(quorate.torch.arrays(net)) == ["one", "two"], "halves of one piece of memory are apart"


@pytest.mark.parametrize("name", ["w x", "größe", "a#b", "w" * 201])
def test_a_name_that_no_job_can_hold_is_said(name: str) -> None:
    net = nn.Module()
    net.register_parameter(name, nn.Parameter(torch.zeros(1)))
    refused("BAD_MODEL", repr(name), quorate.torch.arrays, net)


def test_compiled_and_parallel_modules_have_the_names_that_were_written() -> None:
    net = Net()
    names = list(quorate.torch.arrays(net))
    assert list(quorate.torch.arrays(torch.compile(net))) == names
    assert list(quorate.torch.arrays(nn.DataParallel(net))) == names


# What does not fit


def test_whatever_does_not_fit_is_named_and_the_module_stays_as_it_was() -> None:
    net = Net()
    before = state(net)
    _, model = through_a_job(net)
    ones = {name: array + 1 for name, array in model.items()}
    without = {name: array for name, array in ones.items() if name != "head.bias"}
    refused("MISSING_TENSOR", "head.bias", quorate.torch.load, net, without)
    refused("UNKNOWN_TENSOR", "tail", quorate.torch.load, net, ones | {"tail": np.zeros(1)})
    refused("WRONG_SHAPE", "head.bias", quorate.torch.load, net, ones | {"head.bias": np.zeros((1, 3), np.float32)})
    refused("WRONG_SHAPE", "head.bias", quorate.torch.load, net, ones | {"head.bias": np.zeros(1, np.float32)})
    refused("WRONG_DTYPE", "head.bias", quorate.torch.load, net, ones | {"head.bias": np.zeros(3, np.int64)})
    refused("UNKNOWN_TENSOR", "tail", quorate.torch.weights, net, ["tail"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_modules_without_values_and_what_is_no_module_are_refused() -> None:
    refused("BAD_MODEL", "weight", quorate.torch.arrays, nn.LazyLinear(3))
    refused("BAD_MODEL", "weight", quorate.torch.arrays, nn.Linear(2, 2, device="meta"))
    refused("BAD_MODEL", "weight", quorate.torch.arrays, nn.Linear(2, 2, dtype=torch.complex64))
    refused("NO_MODULE", "function", quorate.torch.arrays, lambda: None)
    refused("BAD_MODEL", "made", quorate.torch.draft, nn.Linear)


def test_without_pytorch_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def none(name: str, *given: Any, **more: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return usual(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(BadInput) as error:
        quorate.torch.arrays(object())
    assert error.value.code == "MISSING_PACKAGE" and error.value.todo == "pip install 'quorate[torch]'"


# FedProx


def test_the_proximal_term_pulls_back_to_where_the_round_began() -> None:
    net = nn.Linear(3, 2)
    term = quorate.torch.Proximal(net, 0.5)
    assert term().item() == 0
    moved = [torch.randn_like(each) for each in net.parameters()]
    with torch.no_grad():
        for each, by in zip(net.parameters(), moved, strict=True):
            each.add_(by)
    (loss := term()).backward()
    assert loss.item() == pytest.approx(0.25 * sum(float(by.square().sum()) for by in moved), rel=1e-5)
    for each, by in zip(net.parameters(), moved, strict=True):
        assert torch.allclose(each.grad, 0.5 * by, atol=1e-6)


def test_without_mu_there_is_no_term() -> None:
    assert quorate.torch.Proximal(Net(), 0)().item() == 0
    for mu in (-1.0, float("nan"), float("inf")):
        refused("BAD_CONFIG", "mu", quorate.torch.Proximal, Net(), mu)


# An app


def app(evaluate: Any = None, **chosen: Any) -> quorate.torch.TorchApp:
    def data() -> Any:
        chance = np.random.default_rng(0)
        x = chance.normal(size=(60, 1, 5, 5)).astype(np.float32)
        return (x, np.arange(60) % 3), (x[:9], np.arange(9) % 3)

    def train(net: Any, part: Any, config: Mapping[str, Any]) -> Any:
        optimiser = torch.optim.SGD(net.parameters(), lr=config["lr"])
        order = torch.randperm(len(part))
        loss = nn.functional.cross_entropy(net(torch.from_numpy(part.x)[order]), torch.from_numpy(part.y)[order])
        loss.backward()
        optimiser.step()
        return len(part), {"loss": loss.item(), "drawn": torch.rand(()).item()}

    def accuracy(net: Any, part: Any) -> Any:
        assert not net.training and not torch.is_grad_enabled()
        scores = net(torch.from_numpy(part.x))
        return len(part), {"accuracy": float((scores.argmax(1).numpy() == part.y).mean())}

    return quorate.torch.TorchApp(Net, data, train, evaluate or accuracy, **chosen)


def test_an_app_trains_what_the_job_averages_and_the_same_way_twice() -> None:
    here = app()
    drafted = draft_job("job", here.model(seed=3), **RULES, **here.roles())
    model = dict(parse_model(drafted.rules.schema, drafted.model))
    held = holdings(here, 2, Partition())
    first, again, other = (
        here.train(model, held.parts[0], {"lr": 0.1}, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    _, given = answered_group(drafted.rules, first[0])
    assert given.keys() == model.keys() and first[1:] == again[1:] and first[1] == 30
    assert here.evaluate(model, held.held_out)[0] == 9
    assert here.model(seed=3)["head.weight"].tolist() != here.model(seed=4)["head.weight"].tolist()
    assert other[1] == 30 and other[2]["drawn"] != first[2]["drawn"]


def test_what_is_local_stays_with_each_part() -> None:
    means: list[Any] = []

    def note(net: Any, part: Any) -> Any:
        means.append(net.norm.running_mean.clone())
        return len(part), {}

    here = app(note, buffers="local")
    drafted = draft_job("job", here.model(), **RULES, **here.roles())
    model = dict(parse_model(drafted.rules.schema, drafted.model))
    assert not any("running" in name for name in model)
    held = holdings(here, 2, Partition())
    for acting, part in ((here, 0), (here, 0), (here, 1), (app(note, buffers="local"), 1)):
        acting.train(model, held.parts[part], {"lr": 0.1}, np.random.default_rng(1))
        acting.evaluate(model, held.parts[part])
    once, twice, other, alone = means
    assert torch.allclose(twice, once * 1.9, atol=1e-3), "with a momentum of 0.1"
    assert torch.equal(other, alone), "the other part has never heard of the first"
