"""Which nodes use a ghost's descriptors."""

from __future__ import annotations

from ssi.node.process.users import Users


def test_one_node_closes_and_that_is_all() -> None:
    users = Users()
    assert users.close(2, 1)
    users.ended = True
    assert users.gone


def test_what_children_have_stays_open_until_they_close_it() -> None:
    users = Users()
    users.move(2, 3, [1, 2])
    assert not users.close(3, 1)
    assert users.close(2, 1)
    assert not users.close(2, 2)
    assert users.close(3, 2)


def test_it_is_in_use_after_the_body_has_ended() -> None:
    users = Users()
    users.move(2, 3, [1])
    users.ended = True
    assert not users.gone
    assert users.close(2, 1)
    assert users.gone


def test_a_body_that_is_back_has_what_it_had_left() -> None:
    users = Users()
    users.move(2, 3, [1])
    assert not users.close(3, 1)
    users.move(3, 2, [])
    assert users.close(2, 1)


def test_a_dead_node_uses_nothing() -> None:
    users = Users()
    users.move(2, 3, [1, 4])
    assert not users.close(3, 4)
    assert users.lose(2) == [4]
    assert not users.lose(2)


def test_the_next_daemon_knows_the_same() -> None:
    users = Users()
    users.move(2, 3, [1, 4])
    users.close(3, 4)
    assert Users.load(users.dump()) == users
