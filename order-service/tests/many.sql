-- Inserts orders `many.first` to `many.last` into an empty database that gets `many.rows` orders in total. The
-- distribution is the worst case for the planner: most orders were delivered long ago, and the others are the last
-- ones. Half belong to user 1, user 2 has only some of the last orders, the others have a few each. A third have a key.
-- A few wait for the reconciler, and some attempts are abandoned.
with many as materialized (
    select n, current_setting('many.rows')::bigint as rows,
        overlay(md5(n::text) placing '0' || to_hex(1577836800000 + n * 180000) || '7' from 1 for 13)::uuid as id -- UUIDv7
    from generate_series(current_setting('many.first')::bigint, current_setting('many.last')::bigint) as n
), keys as (
    insert into idempotency_keys (key, order_id, fingerprint)
    select 'order-' || n, id, sha256(n::text::bytea) from many where n % 3 = 0
), attempts as (
    insert into intents (id, user_id, created_at, begun_at)
    select gen_random_uuid(), 1, now(), now() - interval '1 day' from many where n % 100000 = 1
), waiting as (
    insert into releases (order_id) select gen_random_uuid() from many where n % 100000 = 2
)
insert into orders (id, user_id, state, lines, total, created_at)
select
    id,
    case when n > rows * 0.995 then 2 when n % 2 = 0 then 1 else 1 + n * 7919 % rows end,
    case
        when n % 100000 = 3 then 'cancelling'
        when n % 20 = 0 then 'cancelled'
        when n > rows * 0.95 then (array['pending', 'confirmed', 'shipped'])[1 + n % 3]
        else 'delivered'
    end,
    format(
        '[{"product": %s, "name": "Oak Desk %1$s", "price": %s, "quantity": %s}]',
        1 + n * 7919 % rows, 99 + n % 250000, 1 + n % 3
    )::jsonb,
    (99 + n % 250000) * (1 + n % 3),
    '2020-01-01'::timestamptz + n * interval '3 minutes'
from many;
