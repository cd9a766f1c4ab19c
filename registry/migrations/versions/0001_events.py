"""The table of events, and the triggers that keep it append-only and one chain.

No trigger stops who owns the tables, since an owner can drop it. So in a team programs log in as
another role, which has no more than this:

    GRANT SELECT, INSERT ON ledger_events TO promoter;
    GRANT SELECT ON ledger_version TO promoter;
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SQLITE: tuple[str, ...] = (
    """CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger_events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
    """CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger_events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
    """CREATE TRIGGER ledger_chain BEFORE INSERT ON ledger_events
    WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM ledger_events)
      OR NEW.previous IS NOT coalesce(
        (SELECT hash FROM ledger_events ORDER BY seq DESC LIMIT 1), '')
    BEGIN SELECT RAISE(ABORT, 'the event does not follow the newest of the ledger'); END""",
)

POSTGRESQL: tuple[str, ...] = (
    """CREATE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      RAISE EXCEPTION 'the ledger is append-only';
    END $$""",
    """CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_events
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse()""",
    # The search path is fixed, so that no table or function of the session's own stands in.
    """CREATE FUNCTION ledger_check() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, {schema}, pg_temp AS $$
    DECLARE
      newest record;
    BEGIN
      IF NEW.login <> session_user THEN
        RAISE EXCEPTION 'the event names the login %, and the session is of %',
          NEW.login, session_user;
      END IF;
      IF NEW.known_by = 'database' AND NEW.actor <> session_user THEN
        RAISE EXCEPTION 'the database does not know the actor % of a session of %',
          NEW.actor, session_user;
      END IF;
      SELECT seq, hash INTO newest FROM ledger_events ORDER BY seq DESC LIMIT 1;
      IF NEW.seq <> coalesce(newest.seq, 0) + 1 OR NEW.previous <> coalesce(newest.hash, '') THEN
        RAISE EXCEPTION 'the event does not follow the newest of the ledger';
      END IF;
      RETURN NEW;
    END $$""",
    """CREATE TRIGGER ledger_check BEFORE INSERT ON ledger_events
    FOR EACH ROW EXECUTE FUNCTION ledger_check()""",
)


def upgrade() -> None:
    op.create_table(
        "ledger_events",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("known_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("login", sa.Text, nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    )
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        statements, schema = SQLITE, ""
    else:
        statements = POSTGRESQL
        schema = bind.scalar(sa.text("SELECT quote_ident(current_schema())"))
    for statement in statements:
        op.execute(statement.replace("{schema}", schema))
