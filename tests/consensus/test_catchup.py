from __future__ import annotations

from consensus.catchup import BLOCKS_A_REQUEST, NEAR, PATIENCE_MS, CatchUp
from consensus.messages import FetchRange, Status

PEER = b"\x01" * 33


def status(final_height: int, epoch: int = 0) -> Status:
    return Status(epoch, 1, 1, final_height, final_height, (), ())


def test_a_small_gap_is_left_to_ordering_at_first() -> None:
    catch_up = CatchUp()
    catch_up.heard(PEER, status(NEAR))
    assert catch_up.next_request(0, 0, 0) is None
    assert catch_up.next_request(PATIENCE_MS - 1, 0, 0) is None


def test_a_small_gap_that_lasts_is_asked_for() -> None:
    catch_up = CatchUp()
    catch_up.heard(PEER, status(1))
    assert catch_up.next_request(0, 0, 0) is None
    assert catch_up.next_request(PATIENCE_MS, 0, 0) == (PEER, FetchRange(1, BLOCKS_A_REQUEST))


def test_whoever_moves_is_not_asked_for_the_last_block() -> None:
    catch_up = CatchUp()
    for height in range(5):
        catch_up.heard(PEER, status(height + 1))
        assert catch_up.next_request(height * PATIENCE_MS, 0, height) is None


def test_a_large_gap_is_asked_for_at_once() -> None:
    catch_up = CatchUp()
    catch_up.heard(PEER, status(NEAR + 1))
    assert catch_up.next_request(0, 0, 0) == (PEER, FetchRange(1, BLOCKS_A_REQUEST))


def test_a_peer_that_gives_one_block_at_a_time_does_not_keep_the_others_from_being_asked() -> None:
    catch_up = CatchUp()
    liar, honest = b"\x01" * 33, b"\x02" * 33
    now_ms, height, asked = 0, 0, []
    for _ in range(8):
        catch_up.heard(liar, status(2**60))
        catch_up.heard(honest, status(5_000))
        request = catch_up.next_request(now_ms, 0, height)
        assert request is not None
        asked.append(request[0])
        now_ms += PATIENCE_MS - 1
        height += 1 if request[0] == liar else BLOCKS_A_REQUEST
        catch_up.answered(request[0], height)
    assert asked.count(liar) <= 1
