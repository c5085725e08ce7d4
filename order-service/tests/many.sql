-- Inserts orders `many.first` to `many.last` into an empty database that gets `many.rows` orders in total. The
-- distribution is the worst case for the planner: most orders were delivered long ago, and the others are the last
-- ones. Half belong to user 1, user 2 has only some of the last orders, the others have a few each. A third have a key.
-- A few wait for the reconciler.
insert into orders (id, user_id, state, lines, total, idempotency_key, fingerprint, created_at)
select
    overlay(md5(n::text) placing '0' || to_hex(1577836800000 + n * 180000) || '7' from 1 for 13)::uuid, -- UUIDv7
    case when n > rows * 0.995 then 2 when n % 2 = 0 then 1 else 1 + n * 7919 % rows end,
    case
        when n % 100000 between 1 and 3 then (array['placing', 'aborting', 'cancelling'])[n % 100000]
        when n % 20 = 0 then 'cancelled'
        when n > rows * 0.95 then (array['pending', 'confirmed', 'shipped'])[1 + n % 3]
        else 'delivered'
    end,
    format(
        '[{"product": %s, "name": "Oak Desk %1$s", "price": %s, "quantity": %s}]',
        1 + n * 7919 % rows, 99 + n % 250000, 1 + n % 3
    )::jsonb,
    (99 + n % 250000) * (1 + n % 3),
    case when n % 3 = 0 then 'order-' || n end,
    case when n % 3 = 0 then sha256(n::text::bytea) end,
    '2020-01-01'::timestamptz + n * interval '3 minutes'
from generate_series(current_setting('many.first')::bigint, current_setting('many.last')::bigint) as n,
    lateral (select current_setting('many.rows')::bigint as rows) as total;
