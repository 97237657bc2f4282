"""One view on every member, whatever joins, dies and is restarted."""

from __future__ import annotations

from support.clusters import Cluster, wait_until


def views(cluster: Cluster) -> set[tuple[int, tuple[int, ...], int]]:
    """Return what the nodes say of the view: number, members, init node."""
    return {
        (node["view"], tuple(node["members"]), node["init_node"])
        for node in cluster.nodes().values()
    }


def wait_view(cluster: Cluster, *members: int) -> tuple[int, int]:
    """Wait until all nodes have one view with these members; return its number and init node."""

    def agreed() -> bool:
        seen = views(cluster)
        return len(seen) == 1 and next(iter(seen))[1] == members

    wait_until(agreed, f"one view of {members}: {views(cluster)}")
    ((number, _, init_node),) = views(cluster)
    return number, init_node


def test_all_members_have_the_same_view_after_each_change(trio: Cluster) -> None:
    number, init_node = wait_view(trio, 1, 2, 3)
    trio.crash(init_node)
    left = sorted({1, 2, 3} - {init_node})
    fewer, next_init = wait_view(trio, *left)
    assert (fewer, next_init) == (number + 1, left[0])
    trio.add(init_node)
    # The init node stays where it is.
    assert wait_view(trio, 1, 2, 3) == (number + 2, next_init)
