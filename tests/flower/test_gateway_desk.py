"""The gateway and its SuperNode: what is asked, what is answered, and all that goes wrong in between."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from fl.client.flowergate import wire
from fl.client.flowergate.forms import EVALUATE, TRAIN, Question, Records, WrongReply
from fl.client.flowergate.objects import opened
from fl.client.flowergate.parcels import ArraysRecord, MetricsRecord, Record, SettingsRecord
from tests.flower.supernode import FAB, RUN, Gateway, Refused, SuperNode

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}
TRAINED = {"w": MODEL["w"] + 1, "b": MODEL["b"] - 1}
QUESTION = Question(TRAIN, 4, MODEL, {"lr": 0.1})
REPLY: dict[str, Record] = {
    "arrays": ArraysRecord(TRAINED),
    "metrics": MetricsRecord({"num-examples": 12, "loss": 0.25}),
}


async def test_a_question_reaches_the_supernode_and_its_reply_comes_back(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        assert await node.pull() is None
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        found = await awaited_pull(node)
        metadata, tree = found
        assert (metadata.run_id, metadata.group_id, metadata.message_type) == (RUN.run_id, "4", "train")
        assert (metadata.src_node_id, metadata.dst_node_id) == (1, node.node_id)
        assert metadata.message_id == tree.object_id
        contents = await node.objects(tree)
        records = json.loads(bytes(opened(contents[tree.children[0].object_id]).body))
        assert list(records) == ["arrays", "config"]
        await node.call("confirm-message-received", wire.Confirm(node.node, 77, tree.object_id), wire.Nothing)
        await node.send(node.reply_to(metadata, REPLY))
        answer = await asking
        assert (answer.examples, dict(answer.metrics)) == (12, {"loss": 0.25})
        assert all(np.array_equal(answer.arrays[name], TRAINED[name]) for name in MODEL)
        assert not list(tmp_path.iterdir()), "nothing of the reply is left on disk"


async def awaited_pull(node: SuperNode) -> tuple[wire.Metadata, wire.Tree]:
    while (found := await node.pull()) is None:
        pass
    return found


async def test_a_supernode_that_asks_early_is_kept_waiting_for_the_question(tmp_path: Path) -> None:
    async with Gateway(tmp_path, hold_s=30.0) as gateway, SuperNode(gateway) as node:
        await node.start()
        pulling = asyncio.create_task(node.pull())
        await asyncio.sleep(0.05)
        assert not pulling.done()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        assert await pulling is not None
        asking.cancel()


async def test_the_run_and_its_app_are_told(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        assert (await node.call("get-run", wire.GetRun(node.node, 77), wire.RunIs)).run == RUN
        fab = await node.call("get-fab", wire.GetFab(node.node, RUN.fab_hash, 77), wire.FabIs)
        assert fab.fab == wire.Fab(RUN.fab_hash, FAB)
        for call, asked, form in (
            ("get-run", wire.GetRun(node.node, 78), wire.RunIs),
            ("get-fab", wire.GetFab(node.node, "cd" * 32, 77), wire.FabIs),
        ):
            with pytest.raises(Refused, match="404"):
                await node.call(call, asked, form)


async def test_a_client_of_the_older_kind_is_asked_and_heard_in_its_own_records(tmp_path: Path) -> None:
    reply: dict[str, Record] = {
        "fitres.parameters": ArraysRecord({"0": TRAINED["w"], "1": TRAINED["b"]}, is_described=False),
        "fitres.num_examples": MetricsRecord({"num_examples": 12}),
        "fitres.metrics": SettingsRecord({"loss": 0.25, "note": "text is left out"}),
        "fitres.status": SettingsRecord({"code": 0, "message": "Success"}),
    }
    async with Gateway(tmp_path, Records.LEGACY) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, tree = await awaited_pull(node)
        contents = await node.objects(tree)
        records = json.loads(bytes(opened(contents[tree.children[0].object_id]).body))
        assert list(records) == ["fitins.parameters", "fitins.config"]
        array = next(each for each in map(opened, contents.values()) if each.kind == "Array")
        assert json.loads(bytes(array.body))["dtype"] == ""
        await node.send(node.reply_to(metadata, reply))
        answer = await asking
        assert (answer.examples, dict(answer.metrics)) == (12, {"loss": 0.25})
        assert all(np.array_equal(answer.arrays[name], TRAINED[name]) for name in MODEL)


@pytest.mark.parametrize("form", list(Records))
async def test_an_evaluation_is_answered_with_numbers_alone(tmp_path: Path, form: Records) -> None:
    replies: dict[Records, dict[str, Record]] = {
        Records.MESSAGE: {"metrics": MetricsRecord({"num-examples": 5, "loss": 0.5, "accuracy": 0.75})},
        Records.LEGACY: {
            "evaluateres.loss": MetricsRecord({"loss": 0.5}),
            "evaluateres.num_examples": MetricsRecord({"num_examples": 5}),
            "evaluateres.metrics": SettingsRecord({"accuracy": 0.75}),
            "evaluateres.status": SettingsRecord({"code": 0}),
        },
    }
    async with Gateway(tmp_path, form) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(Question(EVALUATE, 2, MODEL, {})))
        metadata, _ = await awaited_pull(node)
        assert metadata.message_type == "evaluate"
        await node.send(node.reply_to(metadata, replies[form]))
        answer = await asking
        assert (answer.examples, dict(answer.metrics)) == (5, {"loss": 0.5, "accuracy": 0.75})


WRONG: dict[str, tuple[Records, dict[str, Record], str]] = {
    "no examples": (Records.MESSAGE, {**REPLY, "metrics": MetricsRecord({"loss": 1.0})}, "num-examples"),
    "half an example": (Records.MESSAGE, {**REPLY, "metrics": MetricsRecord({"num-examples": 0.5})}, "num-examples"),
    "endless examples": (
        Records.MESSAGE,
        {**REPLY, "metrics": MetricsRecord({"num-examples": float("inf")})},
        "num-examples",
    ),
    "two records of arrays": (Records.MESSAGE, {**REPLY, "more": ArraysRecord({})}, "2 records of arrays"),
    "no arrays": (Records.MESSAGE, {"metrics": REPLY["metrics"]}, "0 records of arrays"),
    "an unknown array": (Records.MESSAGE, {**REPLY, "arrays": ArraysRecord({"q": MODEL["b"]})}, "none of this name"),
    "the other form": (Records.LEGACY, REPLY, "no fitres.status"),
    "a client's error": (
        Records.LEGACY,
        {"fitres.status": SettingsRecord({"code": 3, "message": "disk full"})},
        "disk full",
    ),
    "too few arrays": (
        Records.LEGACY,
        {
            "fitres.status": SettingsRecord({"code": 0}),
            "fitres.num_examples": MetricsRecord({"num_examples": 1}),
            "fitres.metrics": SettingsRecord({}),
            "fitres.parameters": ArraysRecord({"0": MODEL["w"]}),
        },
        "1 arrays, and the model has 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_reply_that_cannot_be_used_says_why(tmp_path: Path, name: str) -> None:
    form, records, what = WRONG[name]
    async with Gateway(tmp_path, form) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, _ = await awaited_pull(node)
        await node.send(node.reply_to(metadata, records))
        with pytest.raises(WrongReply, match=what):
            await asking


@pytest.mark.parametrize(
    "changed",
    [
        {"run_id": 1},
        {"src_node_id": 9},
        {"dst_node_id": 9},
        {"group_id": "5"},
        {"message_type": "evaluate"},
    ],
    ids=str,
)
async def test_a_reply_with_another_address_ends_the_question(tmp_path: Path, changed: dict[str, int | str]) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, _ = await awaited_pull(node)
        with pytest.raises(Refused, match="400"):
            await node.push(node.reply_to(metadata, REPLY, **changed))
        with pytest.raises(WrongReply):
            await asking


async def test_a_reply_under_another_id_ends_the_question(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, _ = await awaited_pull(node)
        reply = node.reply_to(metadata, REPLY)
        message = wire.Message(wire.Metadata(**{**as_dict(reply.metadata), "message_id": "0" * 64}), wire.Content())
        with pytest.raises(Refused, match="400"):
            await node.call(
                "push-messages", wire.PushMessages(node.node, (message,), (reply.tree,)), wire.PushedMessages
            )
        with pytest.raises(WrongReply, match="its id"):
            await asking


def as_dict(metadata: wire.Metadata) -> dict[str, object]:
    return {name: getattr(metadata, name) for name in metadata.__slots__}


async def test_bytes_with_another_id_end_the_question(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, _ = await awaited_pull(node)
        pushed = await node.push(node.reply_to(metadata, REPLY))
        with pytest.raises(Refused, match="another id"):
            await node.put(pushed.session_id, pushed.objects_to_push[0], b"ArrayChunk  1\0x")
        with pytest.raises(WrongReply, match="another id"):
            await asking


async def test_an_app_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, _ = await awaited_pull(node)
        reply = node.reply_to(metadata, {})
        failed = wire.Message(reply.metadata, error=wire.Failure(2, "ZeroDivisionError: division by zero"))
        tree = wire.Tree(reply.named)
        pushed = await node.call("push-messages", wire.PushMessages(node.node, (failed,), (tree,)), wire.PushedMessages)
        assert not pushed.objects_to_push
        with pytest.raises(WrongReply, match="division by zero"):
            await asking


async def test_a_reply_to_a_round_that_is_over_is_turned_away_and_the_next_question_is_asked(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, tree = await awaited_pull(node)
        asking.cancel()
        await asyncio.wait({asking})
        missing = await node.call("pull-object", wire.PullObject(node.node, 77, tree.object_id), wire.PulledObject)
        assert not missing.object_found
        with pytest.raises(Refused, match="too late") as refused:
            await node.push(node.reply_to(metadata, REPLY))
        assert refused.value.status == 403, "at which a SuperNode drops the reply and goes on"
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, _ = await awaited_pull(node)
        await node.send(node.reply_to(metadata, REPLY))
        assert (await asking).examples == 12


async def test_a_round_that_ends_while_its_reply_comes_in_leaves_nothing(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        metadata, _ = await awaited_pull(node)
        reply = node.reply_to(metadata, REPLY)
        pushed = await node.push(reply)
        asking.cancel()
        await asyncio.wait({asking})
        named = pushed.objects_to_push[0]
        assert not await node.put(pushed.session_id, named, reply.content(named) or b"")
        assert not list(tmp_path.iterdir())


async def test_a_reply_to_a_message_of_nobody_is_refused(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        with pytest.raises(Refused, match=r"403 .* not given"):
            await node.push(node.reply_to(wire.Metadata(77, "f" * 64, 1, node.node_id), REPLY))


async def test_a_supernode_that_asks_again_has_lost_its_message_and_gets_it_again_but_not_for_ever(
    tmp_path: Path,
) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        first, _ = await awaited_pull(node)
        second, _ = await awaited_pull(node)
        assert second.message_id != first.message_id and second.group_id == first.group_id
        await awaited_pull(node)
        assert await node.pull() is None
        with pytest.raises(WrongReply, match="lost"):
            await asking


async def test_a_second_supernode_is_refused_while_the_first_is_heard_of(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as first, SuperNode(gateway) as second:
        await first.start()
        gateway.clock.now += 59
        with pytest.raises(Refused, match="Another SuperNode") as refused:
            await second.start()
        assert refused.value.status == 409, "at which a SuperNode ends with the message"
        await first.call("send-node-heartbeat", wire.Heartbeat(first.node, 30.0), wire.Heard)
        gateway.clock.now += 59
        with pytest.raises(Refused, match="Another SuperNode"):
            await second.start()


async def test_a_supernode_that_died_in_a_round_is_replaced_and_the_round_goes_on(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as first, SuperNode(gateway) as second:
        await first.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        lost, _ = await awaited_pull(first)
        gateway.clock.now += 61
        await second.start()
        metadata, _ = await awaited_pull(second)
        assert metadata.dst_node_id == second.node_id and metadata.message_id != lost.message_id
        with pytest.raises(Refused, match="Another SuperNode"):
            await first.push(first.reply_to(lost, REPLY))
        await second.send(second.reply_to(metadata, REPLY))
        assert (await asking).examples == 12


async def test_a_supernode_with_a_key_of_its_own_comes_back_at_once(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as before, SuperNode(gateway, before.key) as after:
        await before.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        await awaited_pull(before)
        await after.start()
        assert after.node_id == before.node_id
        metadata, _ = await awaited_pull(after)
        await after.send(after.reply_to(metadata, REPLY))
        assert (await asking).examples == 12


async def test_a_supernode_that_leaves_makes_room_and_its_round_goes_to_the_next(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as first, SuperNode(gateway) as second:
        await first.start()
        asking = asyncio.create_task(gateway.desk.ask(QUESTION))
        await awaited_pull(first)
        await first.call("deactivate-node", wire.NodeIs(first.node_id), wire.Nothing)
        await second.start()
        metadata, _ = await awaited_pull(second)
        await second.send(second.reply_to(metadata, REPLY))
        assert (await asking).examples == 12


async def test_a_gateway_that_was_started_anew_knows_its_supernode(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as before, SuperNode(before) as node:
        await node.start()
    async with Gateway(tmp_path) as after, SuperNode(after, node.key) as same:
        same.node_id = node.node_id
        heard = await same.call("send-node-heartbeat", wire.Heartbeat(same.node, 30.0), wire.Heard)
        assert heard.success
        asking = asyncio.create_task(after.desk.ask(QUESTION))
        assert (await awaited_pull(same))[0].group_id == "4"
        asking.cancel()


async def test_two_questions_are_asked_one_after_the_other(tmp_path: Path) -> None:
    async with Gateway(tmp_path) as gateway, SuperNode(gateway) as node:
        await node.start()
        asking = [asyncio.create_task(gateway.desk.ask(Question(TRAIN, number, MODEL, {}))) for number in (1, 2)]
        for _ in asking:
            metadata, _ = await awaited_pull(node)
            await node.send(node.reply_to(metadata, REPLY))
        assert [answer.examples for answer in await asyncio.gather(*asking)] == [12, 12]
