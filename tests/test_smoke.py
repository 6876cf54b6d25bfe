from tests.harness import World


def test_basics(world: World) -> None:
    assert world.beat(limit=1)["decision"] == "allow"
    assert world.beat("s2", "d2", limit=1)["decision"] == "block"
    world.play(30, ("s1", "d1"), limit=1)
    assert world.beat("s2", "d2", limit=1)["decision"] == "block"
    world.wait(16)
    assert world.beat("s2", "d2", limit=1)["decision"] == "allow"
    back = world.beat("s1", limit=1)
    assert (back["decision"], back["reason"]) == ("block", "displaced")
    world.wait(31)
    assert world.sweep() == 1
    assert world.running() == set()
    print([e["type"] for e in world.events()])
    world.signal("d9", limit=1)
    assert world.signal("d8", limit=1)["decision"] == "block"
    world.sessions()
    world.takeover("s2", "oldest", limit=1)
    assert world.stop("s2")
    assert world.check(limit=1)["decision"] == "allow"
