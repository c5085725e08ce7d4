-- When the row was inserted, by the clock of the database. The reconciler decides by it which intents are abandoned: the clocks
-- of the replicas, which set `created_at`, may differ. The release before inserts rows without it.
alter table orders add column begun_at timestamptz not null default now();
