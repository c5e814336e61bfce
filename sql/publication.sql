-- What the change log carries: the tables of the queries, and of each the columns they use and its key.
-- Heartbeats need no table and no privilege: they are pg_logical_emit_message().
{publication};
