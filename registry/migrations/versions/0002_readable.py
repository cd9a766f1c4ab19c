"""PostgreSQL refuses an event that could not be read again, or whose hash is not of its content.

A login may add events, and with one that nobody can read it would stop the ledger for all others.
SQLite's ledger is one user's: nothing changes there.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

KINDS = (
    *("proposed", "approved", "intent", "done", "rolled_back"),
    *("abandoned", "rejected", "refused", "erased", "hook"),
)
KNOWN_BY = ("tracking server", "database", "operating system")
NEEDED = {
    "intent": ("alias", "from", "to", "move"),
    "done": ("alias", "from", "to", "intent"),
    "rolled_back": ("alias", "from", "to", "intent"),
    "abandoned": ("alias", "intent"),
    "proposed": ("alias",),
}
"""What an event of a kind says, as `registry.events` reads it."""
TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$"

POSTGRESQL: tuple[str, ...] = (
    # A string as Python's json writes it, in ASCII.
    r"""CREATE FUNCTION ledger_quoted(word text) RETURNS text LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
      plain text := to_json(word)::text;
      quoted text := '';
      letter text;
      code int;
    BEGIN
      IF octet_length(plain) = char_length(plain) AND position(chr(127) IN plain) = 0 THEN
        RETURN plain;
      END IF;
      FOREACH letter IN ARRAY regexp_split_to_array(plain, '') LOOP
        code := ascii(letter);
        IF code > 65535 THEN
          quoted := quoted || '\u' || lpad(to_hex(55296 + ((code - 65536) >> 10)), 4, '0')
            || '\u' || lpad(to_hex(56320 + ((code - 65536) & 1023)), 4, '0');
        ELSIF code > 126 THEN
          quoted := quoted || '\u' || lpad(to_hex(code), 4, '0');
        ELSE
          quoted := quoted || letter;
        END IF;
      END LOOP;
      RETURN quoted;
    END $$""",
    """CREATE FUNCTION ledger_read() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, {schema}, pg_temp AS $$
    DECLARE
      said text;
    BEGIN
      IF NEW.kind NOT IN ({kinds}) OR NEW.known_by NOT IN ({known_by})
        OR NEW.created_at !~ '{time}' OR NEW.created_at::timestamptz IS NULL
        OR json_typeof(NEW.body::json) <> 'object'
        OR NOT NEW.body::jsonb ?& (
          coalesce(('{needed}'::jsonb ->> NEW.kind), '{{}}')::text[])
      THEN
        RAISE EXCEPTION 'the event cannot be read';
      END IF;
      said := '{{"actor":{{"known_by":' || ledger_quoted(NEW.known_by)
        || ',"name":' || ledger_quoted(NEW.actor) || '}},"body":' || NEW.body
        || ',"created_at":' || ledger_quoted(NEW.created_at)
        || ',"kind":' || ledger_quoted(NEW.kind) || ',"login":' || ledger_quoted(NEW.login)
        || ',"name":' || ledger_quoted(NEW.name) || ',"previous":' || ledger_quoted(NEW.previous)
        || ',"seq":' || NEW.seq || ',"version":' || coalesce(NEW.version::text, 'null') || '}}';
      IF NEW.hash <> encode(sha256(convert_to(said, 'UTF8')), 'hex') THEN
        RAISE EXCEPTION 'the hash of the event is not of its content';
      END IF;
      RETURN NEW;
    EXCEPTION WHEN data_exception THEN
      RAISE EXCEPTION 'the event cannot be read';
    END $$""",
    """CREATE TRIGGER ledger_read BEFORE INSERT ON ledger_events
    FOR EACH ROW EXECUTE FUNCTION ledger_read()""",
)


def upgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        return
    words = {
        "schema": bind.scalar(sa.text("SELECT quote_ident(current_schema())")),
        "kinds": ", ".join(f"'{one}'" for one in KINDS),
        "known_by": ", ".join(f"'{one}'" for one in KNOWN_BY),
        "time": TIME,
        "needed": _as_json(NEEDED),
    }
    quoted, read, trigger = POSTGRESQL
    for statement in (quoted, read.format(**words), trigger):
        bind.exec_driver_sql(statement.replace("%", "%%"))


def _as_json(needed: dict[str, tuple[str, ...]]) -> str:
    pairs = (f'"{kind}": "{{{",".join(keys)}}}"' for kind, keys in needed.items())
    return "{" + ", ".join(pairs) + "}"
