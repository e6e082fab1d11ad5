"""Scenes of columns and names that real schemas have: what PostgreSQL can hold exactly has a way in, and what is
refused names the way out. Each has a table of its own.
"""

from __future__ import annotations

from tests.world.play import Play, Wrong, error
from tests.world.scenes import scene
from tests.world.shapes import define, execute, must, run_all


def _delivers(
    play: Play, table: str, ddl: str, mart: str, says: str = "key: [id]", query: str = "SELECT 1"
) -> None:
    """Two runs: all of the mart is there after the first, and the second finds nothing to do."""
    execute(play, ddl)
    destination = f'destination: {{connection: db, table: "crm.{table}"}}'
    define(play, table, mart, f"{says}\n{destination}")
    for _ in range(2):
        ended, found = run_all(play)
        if ended.code:
            raise Wrong(f"FALSE REFUSAL {error(ended)}")
    if not found[table]["unchanged"] or found[table]["unchanged"] != found[table]["read"]:
        raise Wrong(f"NOT IDLE {found[table]}")
    must(play, f"SELECT bool_and(ok) FROM ({query}) AS found(ok)", [(True,)], f"values of {table}")


@scene("the key of update_only is an identity that only the server may give", "upsert")
def an_identity(play: Play) -> None:
    _delivers(
        play,
        "accounts",
        "CREATE TABLE crm.accounts (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v bigint);"
        "INSERT INTO crm.accounts (v) SELECT 0 FROM generate_series(1, 20)",
        "SELECT i AS id, i * 2 AS v FROM range(1, 21) t(i)",
        "key: [id]\nwrite: update_only",
        "SELECT v = id * 2 FROM crm.accounts",
    )


@scene("a trigger fills a column that must not be empty", "upsert")
def a_column_of_a_trigger(play: Play) -> None:
    _delivers(
        play,
        "films",
        "CREATE TABLE crm.films (id bigint PRIMARY KEY, title text, words tsvector NOT NULL);"
        "CREATE FUNCTION crm.words() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " NEW.words := to_tsvector('simple', NEW.title); RETURN NEW; END $$;"
        "CREATE TRIGGER words BEFORE INSERT OR UPDATE ON crm.films FOR EACH ROW EXECUTE FUNCTION crm.words()",
        "SELECT i AS id, 'title ' || i AS title FROM range(20) t(i)",
        query="SELECT words @@ to_tsquery('simple', id::text) FROM crm.films",
    )


@scene("columns of types that no contract names", "upsert")
def types_without_a_name(play: Play) -> None:
    kinds = {
        "t": ("time", "'10:00:00'"), "i": ("interval", "'01:30:00'"), "net": ("inet", "'10.0.0.1'"),
        "mac": ("macaddr", "'08:00:2b:01:02:03'"), "span": ("int4range", "'[1,5)'"),
        "bytes": ("bytea", "'\\x6869'"), "real": ("real", "'0.5'"), "code": ("char(3)", "'abc'"),
        "mail": ("public.citext", "'A@b.c'"),
    }  # fmt: skip
    listed = ", ".join(f"{name} {kind}" for name, (kind, _) in kinds.items())
    _delivers(
        play,
        "mixed",
        f"CREATE EXTENSION IF NOT EXISTS citext SCHEMA public; CREATE TABLE crm.mixed (id bigint PRIMARY KEY, {listed}, sums numeric(5,2)[])",
        f"SELECT 1::BIGINT AS id, {', '.join(f'{value} AS {name}' for name, (_, value) in kinds.items())},"
        " [1.50, 2.25]::DECIMAL(5,2)[]::VARCHAR[] AS sums",
        query="SELECT sums = '{1.50,2.25}' AND "
        + " AND ".join(f"{n} = {v}::{k}" for n, (k, v) in kinds.items())
        + " FROM crm.mixed",
    )


@scene("sized columns of an application", "upsert")
def sized(play: Play) -> None:
    execute(play, "CREATE TABLE crm.goods (id bigint PRIMARY KEY, name varchar(5), price numeric(6,2))")
    says = "key: [id]\ndestination: {connection: db, table: crm.goods}"
    define(
        play,
        "goods",
        "SELECT i AS id, 'n' || i AS name, 1.5::DECIMAL(12,2) AS price FROM range(20) t(i)",
        says,
    )
    ended, _ = run_all(play)
    if ended.code:
        words = str(error(ended))
        if "max_length: 5" not in words or "decimal" not in words:
            raise Wrong(f"NO REMEDY in {words}")
        contract = (
            "contract: {id: {type: integer}, name: {type: string, max_length: 5},"
            " price: {type: decimal, max_digits: 6, decimal_places: 2}}"
        )
        define(
            play, "goods", "SELECT i AS id, 'n' || i AS name, 1.5::DECIMAL(12,2) AS price FROM range(20) t(i)",
            f"{says}\n{contract}",
        )  # fmt: skip
        run_all(play)
    must(play, "SELECT count(*) FROM crm.goods WHERE price = 1.5", [(20,)], "goods")


@scene("a key that the table folds, and a unique index on an expression", "upsert")
def a_folded_key(play: Play) -> None:
    _delivers(
        play,
        "people",
        "CREATE EXTENSION IF NOT EXISTS citext SCHEMA public;"
        "CREATE TABLE crm.people (email public.citext PRIMARY KEY, alias text, v bigint);"
        "CREATE UNIQUE INDEX ON crm.people (lower(alias))",
        "SELECT 'User' || i || '@Example.com' AS email, 'Alias' || i AS alias, i AS v FROM range(20) t(i)",
        "key: [email]",
        "SELECT email = alias::public.citext || '' OR v IS NOT NULL FROM crm.people",
    )


@scene("names that are hard to write: dots, system columns, a comment at the end", "upsert")
def hard_names(play: Play) -> None:
    play.target.project.mart('CREATE OR REPLACE TABLE "a.b" AS SELECT i AS id, i AS v FROM range(20) t(i)')
    execute(play, 'CREATE TABLE crm."a.b" (id bigint PRIMARY KEY, v bigint)')
    folder = play.target.folder / "syncs"
    (folder / "users.yml").unlink(missing_ok=True)
    destination = """destination: {connection: db, table: 'crm."a.b"'}"""
    for source in ("{table: '\"a.b\"'}", "{sql: 'SELECT id, v FROM \"a.b\"; -- all'}"):
        (folder / "dots.yml").write_text(f"source: {source}\nkey: [id]\n{destination}\n")
        ended, _ = run_all(play)
        if ended.code:
            raise Wrong(f"FALSE REFUSAL {error(ended)}")
    must(play, 'SELECT count(*) FROM crm."a.b"', [(20,)], "rows of a table with a dot")
    (folder / "dots.yml").unlink()
    define(
        play,
        "hidden",
        "SELECT 1 AS id, 2 AS xmin",
        "key: [id]\ndestination: {connection: db, table: crm.hidden, create: true}",
    )
    ended, _ = run_all(play)
    if ended.code == 0 or "xmin" not in str(error(ended)):
        raise Wrong(f"NO REMEDY for a column that is called xmin: {error(ended)}")


@scene("a login is refused", "upsert")
def a_refused_login(play: Play) -> None:
    user = play.target.project.environ["PG_USER"]
    play.target.project.environ["PG_USER"] = "nobody_here"
    ended = play.run(partial=True)
    if ended.code == 0 or "nobody_here" not in error(ended)["message"]:
        raise Wrong(f"NO REMEDY: the user is not named in {error(ended)}")
    play.target.project.environ["PG_USER"] = user
    play.settle(quiet=True)
