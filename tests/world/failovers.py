"""Scenes of servers: they restart, forget, or hand over to a standby or replica, between runs and during them."""

from __future__ import annotations

from msgspec.structs import replace

from tests.proxy import Proxy
from tests.world.hosts import Cache, Replica, Standby
from tests.world.play import Play
from tests.world.scenes import CACHE, POSTGRES, scene


def _primary_behind_an_address(play: Play) -> tuple[Proxy, Proxy, Standby]:
    """The address clients know; the standby's own way to its primary; the standby."""
    cluster = play.table.cluster
    address = play.hold.enter_context(Proxy(cluster.host, cluster.port))
    link = play.hold.enter_context(Proxy(cluster.host, cluster.port))
    standby = Standby(play.hosts.folder(), cluster, link.port)
    play.hold.callback(standby.stop)
    standby.start()
    play.target.reach(address.host, address.port)
    return address, link, standby


def _fail_over(play: Play, address: Proxy, standby: Standby) -> None:
    target = play.table
    standby.promote()
    target.database = replace(target.database, port=standby.port)
    address.lead_to(standby.host, standby.port)


@scene("failover to a standby that had everything", *POSTGRES, own_server=True)
def failover(play: Play) -> None:
    address, _, standby = _primary_behind_an_address(play)
    play.run()
    play.next_day()
    play.run()
    standby.caught_up()
    _fail_over(play, address, standby)
    play.next_day()
    play.settle(quiet=True)


@scene("failover to a standby that lagged by a run", *POSTGRES, own_server=True)
def failover_with_lag(play: Play) -> None:
    address, link, standby = _primary_behind_an_address(play)
    play.run()
    standby.caught_up()
    link.refuse()
    play.next_day()
    play.run()
    _fail_over(play, address, standby)
    play.settle()


@scene("failover in the middle of a run to a standby that lagged", *POSTGRES, own_server=True)
def failover_during(play: Play) -> None:
    address, link, standby = _primary_behind_an_address(play)
    play.run()
    play.next_day()
    standby.caught_up()
    link.refuse()
    play.during("batch_acknowledged", lambda: _fail_over(play, address, standby), nth=3)
    play.settle()


@scene("server restarts in the middle of a run", *POSTGRES, own_server=True)
def restart_during(play: Play) -> None:
    play.run()
    play.next_day()
    play.during("batch_acknowledged", play.table.cluster.restart, nth=3)
    play.settle()


@scene("cache restarts empty between runs", *CACHE, short=("json",))
def cache_restarted(play: Play) -> None:
    play.run()
    play.cached.cache.lose_memory()
    play.next_day()
    play.settle()


@scene("cache restarts empty in the middle of a run", *CACHE, short=("json", "ttl"))
def cache_restarted_during(play: Play) -> None:
    play.run()
    play.next_day()
    play.during("batch_acknowledged", play.cached.cache.lose_memory, nth=3)
    play.settle()


@scene("cache restarts empty in the middle of the first run", *CACHE)
def cache_restarted_during_the_first_run(play: Play) -> None:
    play.during("batch_acknowledged", play.cached.cache.lose_memory, nth=20)
    play.settle()


@scene("cache restarts with an old file between runs", *CACHE)
def cache_restarted_with_an_old_file(play: Play) -> None:
    play.run()
    _save(play)
    play.next_day()
    play.run()
    play.cached.cache.lose_memory()
    play.settle()


@scene("cache restarts with an old file in the middle of a run", *CACHE, short=("json",))
def cache_restarted_with_an_old_file_during(play: Play) -> None:
    play.run()
    _save(play)
    play.next_day()
    play.run()
    play.next_day()
    play.during("batch_acknowledged", play.cached.cache.lose_memory, nth=3)
    play.settle()


@scene("cache saved and restarted in the middle of a run, some batches lost", *CACHE)
def cache_restarted_with_a_file_of_this_run(play: Play) -> None:
    play.run()
    play.next_day()
    lose = play.cached.cache.lose_memory
    play.during("batch_acknowledged", {2: lambda: _save(play), 4: lose})
    play.settle()


@scene("replica that lagged is promoted", *CACHE)
def cache_failover(play: Play) -> None:
    target = play.cached
    primary, link, address, replica = _replicated(play)
    play.run()
    replica.caught_up(primary)
    link.refuse()
    play.next_day()
    play.run()
    replica.promote(primary.password)
    target.server = replica.address
    address.lead_to(replica.host, replica.port)
    play.settle()


@scene("replica that lagged is promoted in the middle of a run", *CACHE)
def cache_failover_during(play: Play) -> None:
    target = play.cached
    primary, link, address, replica = _replicated(play)
    play.run()
    replica.caught_up(primary)
    link.refuse()
    play.next_day()

    def promote() -> None:
        replica.promote(primary.password)
        target.server = replica.address
        address.lead_to(replica.host, replica.port)

    play.during("batch_acknowledged", promote, nth=4)
    play.settle()


@scene("replica that had everything is promoted", *CACHE)
def cache_failover_without_loss(play: Play) -> None:
    target = play.cached
    primary, _, address, replica = _replicated(play)
    play.run()
    play.next_day()
    play.run()
    replica.caught_up(primary)
    replica.promote(primary.password)
    target.server = replica.address
    address.lead_to(replica.host, replica.port)
    play.next_day()
    play.settle(quiet=True)


@scene("half of the keys evicted", "json", "mirror in Redis", "ttl")
def evicted(play: Play) -> None:
    play.run()
    play.cached.lose(0.5)
    play.settle()


def _replicated(play: Play) -> tuple[Cache, Proxy, Proxy, Replica]:
    target = play.cached
    primary = target.cache
    address = play.hold.enter_context(Proxy(primary.host, primary.port))
    link = play.hold.enter_context(Proxy(primary.host, primary.port))
    replica = play.hosts.own_replica(play.server)
    play.hold.callback(replica.stop)
    replica.follow(primary, link.port)
    play.target.reach(address.host, address.port)
    return primary, link, address, replica


def _save(play: Play) -> None:
    with play.cached.cache.client() as client:
        client.save()
