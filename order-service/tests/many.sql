-- Orders for an empty database, as many as the setting `many.rows` says, here those from `many.first` to `many.last`. The
-- planner's worst: most were delivered long ago, and those that are not are the last ones; half are user 1's, user 2 has
-- only some of the last, and the rest have a few each. A third have a key. A few wait for the reconciler.
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
    lateral (select current_setting('many.rows')::bigint as rows) as all_of_them;
